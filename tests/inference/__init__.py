"""Tests of the engine, and the conformance harness that every sampler passes."""
