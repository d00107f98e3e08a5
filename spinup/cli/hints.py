"""Hints for unknown flags: names from other libraries, and misspelt names.

For names from stable-baselines3 and CleanRL, the hint explains the equivalent here, which depends
on the parameters of the algorithm.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

# Names less similar than this give no hint: "n_envs" isn't a misspelt "env".
LIKENESS = 0.7

NONE = "has no counterpart here"
SAME = "the value stays the same"

# For each name, hints by the parameters that the algorithm must have ("" for any algorithm). The
# first hint that fits is used; if none fits, the flag has no counterpart.
_RATES = {
    "lr": "is --lr, for policy and critics alike",
    "pi_lr vf_lr": "is two flags: --pi_lr for the policy, --vf_lr for the value function",
    "pi_lr q_lr": "is two flags: --pi_lr for the policy, --q_lr for the critics",
    "delta vf_lr": "is --vf_lr, for the value function; --delta sets the size of the policy's step",
}
_STEPS = {"train_v_iters": "is --steps_per_epoch, summed over ranks: n_steps times n_envs"}
_VALUE_ITERS = "--train_v_iters, gradient steps on the whole epoch's batch"
_PASSES = {
    "train_pi_iters": "is two flags: --train_pi_iters and --train_v_iters, gradient steps on the "
    "whole epoch's batch, or with --minibatch_size passes over it",
    "train_v_iters": f"is {_VALUE_ITERS}, for the value function; the policy takes one step",
}
_MINIBATCHES = f"{NONE}: each gradient step takes the whole epoch's batch (--steps_per_epoch)"
_RANKS = {"": "is --cpu: each MPI rank steps one environment, and --steps_per_epoch is their total"}
_CLIP = {"clip_ratio": f"is --clip_ratio; {SAME}"}
_NOISE = {"act_noise": f"is --act_noise; {SAME}"}
_TARGET_NOISE = {"target_noise": f"is --target_noise; {SAME}"}
_ENTROPY = {"alpha": f"is --alpha; {SAME}, or auto to learn it"}

OTHER_NAMES: dict[str, dict[str, str]] = {
    "learning_rate": _RATES,
    "lr": _RATES,
    "policy_lr": {"pi_lr": f"is --pi_lr; {SAME}", "lr": "is --lr, for policy and critics alike"},
    "total_timesteps": {
        "": "is --epochs times --steps_per_epoch: 100,000 steps are --epochs 25 of 4000 steps each"
    },
    "n_envs": _RANKS,
    "num_envs": _RANKS,
    "env_id": {"": f"is --env; {SAME}"},
    "n_steps": _STEPS,
    "num_steps": _STEPS,
    "n_epochs": _PASSES,
    "update_epochs": _PASSES,
    "batch_size": {
        "minibatch_size": f"is --minibatch_size; {SAME}",
        "train_v_iters": _MINIBATCHES,
    },
    "num_minibatches": {
        "minibatch_size": "is --steps_per_epoch divided by --minibatch_size",
        "train_v_iters": _MINIBATCHES,
    },
    "anneal_lr": {"lr_schedule": "is --lr_schedule linear"},
    "ent_coef": {
        **_ENTROPY,
        "train_v_iters": f"{NONE}: the loss has no entropy bonus",
        "act_noise": f"{NONE}: the policy is deterministic",
    },
    "vf_coef": {"vf_lr": f"{NONE}: the value function has its own optimizer, with --vf_lr"},
    "max_grad_norm": {"": f"{NONE}: gradients aren't clipped"},
    "clip_range": _CLIP,
    "clip_coef": _CLIP,
    "gae_lambda": {"lam": f"is --lam; {SAME}"},
    "tau": {"polyak": "is --polyak, which is 1 - tau: --tau 0.005 is --polyak 0.995"},
    "buffer_size": {"replay_size": f"is --replay_size; {SAME}"},
    "learning_starts": {
        "update_after": "is two flags: --start_steps, the number of random steps, and "
        "--update_after, the number of steps before the first update"
    },
    "train_freq": {
        "update_every": f"is --update_every, in environment steps; {SAME}, and as many gradient "
        "steps follow"
    },
    "gradient_steps": {"update_every": f"{NONE}: there is one per environment step"},
    "exploration_noise": _NOISE,
    "policy_noise": _TARGET_NOISE,
    "target_policy_noise": _TARGET_NOISE,
    "target_noise_clip": {"noise_clip": f"is --noise_clip; {SAME}"},
    "policy_frequency": {"policy_delay": f"is --policy_delay; {SAME}"},
    "target_kl": {"delta": f"is --delta; {SAME}"},
    "cg_max_steps": {"cg_iters": f"is --cg_iters; {SAME}"},
    "cg_damping": {"damping_coeff": f"is --damping_coeff; {SAME}"},
    "line_search_shrinking_factor": {"backtrack_coeff": f"is --backtrack_coeff; {SAME}"},
    "line_search_max_iter": {"backtrack_iters": f"is --backtrack_iters; {SAME}"},
    "n_critic_updates": {"train_v_iters": f"is {_VALUE_ITERS}"},
    "cuda": {"": "is --device cuda"},
}


def hint(name: str, parameters: Collection[str], others: Iterable[str] = ()) -> str:
    """Returns a hint for an unknown flag; empty if no known name is similar.

    Args:
        name: the unknown flag.
        parameters: the parameters of the algorithm.
        others: all other flags.
    """
    plain = name.replace("-", "_")
    known = OTHER_NAMES.get(plain)
    if known is not None and plain not in parameters:
        fitting = (text for needed, text in known.items() if set(needed.split()) <= {*parameters})
        return f"--{name} {next(fitting, NONE)}"
    meant = nearest(name, [*parameters, *others])
    return f"did you mean --{meant}?" if meant else ""


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Returns the most similar valid name, or None if no name is similar enough.

    The whole names and the parts after the last colon are compared.
    """

    def likeness(candidate):
        return max(_likeness(name.lower(), c.lower()) for c in (candidate, _last(candidate)))

    best = max(valid, key=likeness, default=None)
    return best if best is not None and likeness(best) >= LIKENESS else None


def _last(key):
    return key.split(":")[-1]


def _likeness(one, other):
    if min(len(one), len(other)) >= 4 and other.startswith(one):  # "hidden" for hidden_sizes
        return 1 - 0.1 * (len(other) - len(one)) / len(other)
    return difflib.SequenceMatcher(None, one, other).ratio()
