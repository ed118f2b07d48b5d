"""The parts of `benchmarks/cifar_fs.py`: data, networks, pretraining, fine-tuning, report."""
