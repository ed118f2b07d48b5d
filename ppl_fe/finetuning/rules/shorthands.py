"""Names in place of rule objects, and the arguments that rules' settings used to be."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar, get_args

from ppl_fe.arguments import did_you_mean
from ppl_fe.finetuning.rules.at_random import Random
from ppl_fe.finetuning.rules.bayes_tune import BayesTune
from ppl_fe.finetuning.rules.bias_only import BiasOnly
from ppl_fe.finetuning.rules.gradient import Gradient
from ppl_fe.finetuning.rules.gradient_squared import GradientSquared
from ppl_fe.finetuning.rules.gradient_to_weight import GradientToWeight
from ppl_fe.finetuning.rules.low_rank import LowRank
from ppl_fe.finetuning.rules.magnitude import Magnitude
from ppl_fe.finetuning.rules.movement import Movement
from ppl_fe.finetuning.rules.per_neuron import PerNeuron
from ppl_fe.finetuning.rules.released_recipe import ReleasedCode
from ppl_fe.finetuning.scoring import Rule

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

RuleName = Literal[
    "bayestune",
    "collapsed",
    "released_code",
    "gradient",
    "gradient_squared",
    "gradient_to_weight",
    "per_neuron",
    "movement",
    "magnitude",
    "low_rank",
    "bias_only",
    "random",
]
RULE_NAMES: tuple[RuleName, ...] = get_args(RuleName)
RULES: Mapping[str, Callable[..., Rule]] = {
    "bayestune": BayesTune,
    "collapsed": partial(BayesTune, scales="expected"),
    "released_code": ReleasedCode,
    "gradient": Gradient,
    "gradient_squared": GradientSquared,
    "gradient_to_weight": GradientToWeight,
    "per_neuron": PerNeuron,
    "movement": Movement,
    "magnitude": Magnitude,
    "low_rank": LowRank,
    "bias_only": BiasOnly,
    "random": Random,
}


def find_rule(rule: str | Rule) -> Rule:
    """Give a rule by its name, at its default settings, or the rule itself.

    Raises:
        TypeError: no rule and no name.
        ValueError: an unknown name.

    Example:
        >>> find_rule("movement")
        Movement(num_steps=500, learning_rate=None)
    """
    if isinstance(rule, Rule):
        return rule
    if isinstance(rule, type) or not isinstance(rule, str):
        raise TypeError(
            f"rule must be one of {list(RULE_NAMES)} or an object such as fe.BayesTune(), got "
            f"{rule!r}"
        )
    if rule not in RULES:
        near = did_you_mean(rule, RULE_NAMES)
        raise ValueError(
            f"rule must be one of {list(RULE_NAMES)}, got {rule!r}{near and f'; {near}'}"
        )
    return RULES[rule]()


def settings_of(name: str) -> set[str]:
    """Give the names of the settings that a rule has, of those a caller may choose.

    Example:
        >>> sorted(settings_of("movement"))
        ['learning_rate', 'num_steps']
    """
    made = RULES[name]
    kind: Any = made.func if isinstance(made, partial) else made
    given = set(made.keywords) if isinstance(made, partial) else set()
    return {field.name for field in fields(kind)} - given


# What follows goes with the next release.

FORMER_NAMES = {"paper": "released_code"}
FORMER_ARGUMENTS = {"method", *(name for rule in RULES for name in settings_of(rule))} - {
    "scales",
    "gradient",
    "rank",
}


def former_arguments(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let `select_parameters` take `method=` and the settings that are the rules' own now.

    Returns:
        The function, which makes a rule of such arguments and warns.

    Raises:
        TypeError: by the function returned, for a rule object and such arguments beside it.
    """
    anyhow: Callable[..., Result] = function

    @functools.wraps(function)
    def called(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        former = {name: value for name, value in kwargs.items() if name in FORMER_ARGUMENTS}
        if not former:
            return function(*args, **kwargs)
        rest = {name: value for name, value in kwargs.items() if name not in former}
        rule = rule_of_former_arguments(former, rest.pop("rule", None))
        return anyhow(*args, rule=rule, **rest)

    return called


def rule_of_former_arguments(former: Mapping[str, Any], rule: object) -> Rule:
    """Make the rule that these arguments used to ask for, and warn how to write it now.

    A setting that the rule does not have was ignored, and still is; None stood for the default.
    """
    names = ", ".join(f"{name}=" for name in sorted(former))
    if rule is not None and ("method" in former or not isinstance(rule, str)):
        raise TypeError(
            f"select_parameters() got rule={rule!r} and {names} beside it; give settings to the "
            "rule, rule=fe.BayesTune(num_chains=4) for example"
        )
    asked = str(former.get("method", rule or "bayestune"))
    name = FORMER_NAMES.get(asked, asked)
    if name not in RULES:
        raise ValueError(f"method must be one of {[*RULES, *FORMER_NAMES]}, got {asked!r}")
    if name not in ("bayestune", "collapsed") and former.get("count_top"):
        raise ValueError("count_top is of the method 'bayestune' or 'collapsed'")
    if name != "bayestune" and former.get("groups") is not None:
        raise ValueError("groups are of the method 'bayestune'")
    own = settings_of(name)
    settings = {k: v for k, v in former.items() if k in own and v is not None}
    made = RULES[name]
    kind: Any = made.func if isinstance(made, partial) else made
    shown = {**(made.keywords if isinstance(made, partial) else {}), **settings}
    call = ", ".join(f"{k}={v!r}" for k, v in shown.items())
    warnings.warn(
        f"select_parameters({names}) goes with the next release: give the rule and its settings as "
        f"rule=fe.{kind.__name__}({call})",
        DeprecationWarning,
        stacklevel=3,
    )
    return made(**settings)
