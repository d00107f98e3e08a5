"""Soft Actor-Critic.

SAC maximises the return plus alpha times the policy's entropy, so that the policy stays as random
as the return allows. It learns off-policy from a replay buffer. Two critics regress on a soft
Bellman backup, which uses the minimum of two target critics. A stochastic policy, squashed by tanh
to the action bounds, is trained on the minimum of the critics by the reparameterization trick.

Papers: arXiv:1801.01290, and arXiv:1812.05905 for two critics and the automatic temperature. Key
equations, with d = 1 where s2 is terminal, a2 ~ pi(.|s2), and in L(pi) and L(alpha) a ~ pi(.|s):

    backup   = r + gamma (1 - d) ( min_i Q_targ,i(s2, a2) - alpha log pi(a2|s2) )
    L(Q)     = sum_i E[ (Q_i(s, a) - backup)^2 ]
    L(pi)    = E[ alpha log pi(a|s) - min_i Q_i(s, a) ]
    L(alpha) = -E[ log alpha (log pi(a|s) + target entropy) ]         (alpha="auto" only)

Names: backup is y in the papers, polyak is 1 - tau.

Log-densities are those of actions scaled to [-1, 1], and don't depend on the units of the Box.

Differs from the first paper: there is no separate state-value function. Differs from Spinning Up:
each action dimension is scaled to its own bounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor

from spinup.algos import ALGORITHMS
from spinup.fast.capture import capture
from spinup.utils.acting import acting_policy
from spinup.utils.buffers import ReplayBuffer
from spinup.utils.checkpoint import Checkpoint
from spinup.utils.contract import check_actor_critic, twin_critic
from spinup.utils.devices import choose_device
from spinup.utils.envs import EnvFn, check_action_space, describe_env, make_envs, seed_everything
from spinup.utils.evaluation import run_test_episodes
from spinup.utils.flat import flatten, flatten_each, frozen
from spinup.utils.groups import group_share, on_learners, this_group
from spinup.utils.logx import EpochLogger
from spinup.utils.mpi_pytorch import sync_params
from spinup.utils.mpi_tools import num_procs, proc_id
from spinup.utils.nets import SquashedGaussianActorCritic
from spinup.utils.normalization import NormalizedActorCritic, normalizer_of
from spinup.utils.optim import Adam
from spinup.utils.training import asks_to_stop, training_run


def soft_backup(
    rew: Tensor,
    terminated: Tensor,
    q_targ: Tensor,
    logp_a2: Tensor,
    alpha: Tensor | float,
    gamma: float,
) -> Tensor:
    """Computes the target of both critics.

    Args:
        rew: rewards, ``(batch,)``.
        terminated: 1 where the next state is terminal, else 0, ``(batch,)``.
        q_targ: both target critics at the next state and action, ``(2, batch)``.
        logp_a2: log-density of the next action, ``(batch,)``.
        alpha: temperature.
        gamma: discount factor.

    Returns:
        Targets ``(batch,)``.
    """
    return rew + gamma * (1 - terminated) * (q_targ.amin(0) - alpha * logp_a2)


def critic_loss(q: Tensor, backup: Tensor) -> Tensor:
    """Sums the mean squared errors of both critics ``(2, batch)`` against targets ``(batch,)``."""
    return (q - backup).square().sum() / len(backup)


def policy_loss(logp: Tensor, q_pi: Tensor, alpha: Tensor | float) -> Tensor:
    """Computes the policy's loss from log-densities ``(batch,)`` and values ``(2, batch)``."""
    return (alpha * logp - q_pi.amin(0)).mean()


def temperature_loss(log_alpha: Tensor, logp: Tensor, target_entropy: float) -> Tensor:
    """Computes the loss of ``log(alpha)`` from log-densities ``(batch,)``."""
    return -log_alpha * (logp.detach() + target_entropy).mean()


@training_run
def sac(
    env_fn: EnvFn,
    actor_critic: Callable[..., Any] = SquashedGaussianActorCritic,
    ac_kwargs: dict[str, Any] | None = None,
    seed: int = 0,
    steps_per_epoch: int = 4000,
    epochs: int = 100,
    replay_size: int = int(1e6),
    gamma: float = 0.99,
    polyak: float = 0.995,
    lr: float = 1e-3,
    alpha: float | Literal["auto"] = 0.2,
    batch_size: int = 100,
    start_steps: int = 10000,
    update_after: int = 1000,
    update_every: int = 50,
    num_test_episodes: int = 10,
    max_ep_len: int = 1000,
    logger_kwargs: dict[str, Any] | None = None,
    save_freq: int = 1,
    device: str = "cpu",
    checkpoint_every: float = 300,
    normalize_obs: bool = False,
    on_epoch: Callable[[dict[str, Any], torch.nn.Module], Any] | None = None,
) -> torch.nn.Module:
    """Trains a policy by Soft Actor-Critic.

    Args:
        env_fn: Gymnasium id, or a function that returns a new environment. Its action space is a
            bounded Box.
        actor_critic: class or function, called with ``(observation_space, action_space,
            **ac_kwargs)``. It returns a module with ``pi(obs)``, which returns differentiable
            actions ``(batch, act_dim)`` and their log-densities ``(batch,)``; critics
            ``q1(obs, act)`` and ``q2(obs, act)``, which return values ``(batch,)``, or one module
            ``q(obs, act)`` for both, which returns ``(2, batch)``; and ``act(obs, deterministic)``,
            which returns the action for one observation as an array. Policy and critics must not
            share parameters.
        ac_kwargs: keyword arguments for `actor_critic`.
        seed: seed of all random generators; rank r uses ``seed + 10000 * r``.
        steps_per_epoch: environment steps per epoch, summed over ranks.
        epochs: number of epochs.
        replay_size: capacity of the replay buffers in transitions, summed over ranks.
        gamma: discount factor, in [0, 1].
        polyak: interpolation factor of the target networks, in [0, 1], usually close to 1. Each
            update sets ``targ = polyak * targ + (1 - polyak) * main``.
        lr: learning rate of the policy, the critics and the temperature.
        alpha: temperature, the weight of the entropy, at least 0. ``"auto"`` learns it so that the
            entropy approaches ``-act_dim``.
        batch_size: transitions in a minibatch, summed over ranks.
        start_steps: environment steps at the start of the run that take uniformly random actions.
        update_after: environment steps before the first update.
        update_every: environment steps between blocks of updates, each of `update_every` updates.
        num_test_episodes: test episodes per epoch with deterministic actions, summed over ranks.
        max_ep_len: environment steps after which an episode is truncated.
        logger_kwargs: keyword arguments for the logger: ``output_dir``, ``exp_name``,
            ``overwrite``, ``resume``, ``verbose``, ``tensorboard``, ``wandb``.
        save_freq: epochs between saves of the policy. The last epoch is always saved.
        device: device on which the networks are trained: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        checkpoint_every: minimum time in seconds between checkpoints, from which a stopped run can
            be resumed. They are saved at the end of an epoch; 0 saves one every epoch.
        normalize_obs: whether to normalise observations by their running mean and standard
            deviation, and clip them to [-10, 10]. The statistics are part of the actor-critic.
        on_epoch: function called at the end of each epoch, on every rank, with the epoch's row of
            the log (a dict) and the actor-critic. The run ends if it returns True on any rank. The
            function may be given by name, ``module:function``.

    Returns:
        The trained actor-critic.

    Raises:
        ValueError: a hyperparameter or a space can't be handled.
        FileExistsError: the output folder holds results.
        Interrupted: a signal stopped the run, after a checkpoint was saved.
        FloatingPointError: an observation, a reward or a loss is NaN or infinite.
    """
    config = dict(algorithm="spinup.sac", **locals())
    torch_device = choose_device(device)
    config["device"] = str(torch_device)

    # Ranks share each minibatch. A learner's gradient is weighted by its group's share.
    rank, num_ranks = proc_id(), num_procs()
    local_batch_size = group_share(batch_size)
    weight = local_batch_size / batch_size
    update_after = max(update_after, num_ranks)  # every rank has stored a transition by then

    # Logger and configuration
    logger = EpochLogger(**(logger_kwargs or {}))
    logger.save_config(config)

    # Seeds
    seed += 10000 * rank
    rng = seed_everything(seed)

    # Environments
    env, test_env = make_envs(env_fn, seed, seed + 5000)
    check_action_space(env.action_space, "sac", ALGORITHMS)
    logger.save_config(describe_env(env))

    # Networks, identical on all ranks
    ac = actor_critic(env.observation_space, env.action_space, **(ac_kwargs or {}))
    ac = check_actor_critic(ac, env, torch_device, "act", "logp", "twin_q")
    if normalize_obs:
        ac = NormalizedActorCritic(ac, env.observation_space)
    q = twin_critic(ac)
    pi_params, q_params = flatten_each(ac.pi, q)
    q_frozen = frozen(q)
    sync_params(ac)
    policy = acting_policy(ac, rng, this_group())
    logger.setup_pytorch_saver(ac)
    logger.log(f"Number of parameters: pi {len(pi_params)}, q1 and q2 {len(q_params)}")

    # Targets
    q_targ = deepcopy(q).requires_grad_(False)
    q_targ_params = flatten(q_targ)

    # Buffer
    spaces = env.observation_space, env.action_space
    buf = ReplayBuffer(*spaces, group_share(replay_size), rng, normalizer_of(ac))

    # Optimizers
    pi_optimizer = Adam(pi_params, lr, loss=f"LossPi in {env.name}")
    q_optimizer = Adam(q_params, lr, loss=f"LossQ in {env.name}")

    # Temperature: fixed, or learned through its logarithm
    learns_alpha = alpha == "auto"
    if learns_alpha:
        log_alpha = torch.nn.Parameter(torch.zeros(1, device=torch_device))
        log_alpha.grad = torch.zeros_like(log_alpha)
        alpha_optimizer = Adam(log_alpha, lr, loss=f"the temperature's loss in {env.name}")
        target_entropy = -math.prod(env.action_space.shape or ())

    def update():
        batch = buf.sample_batch(local_batch_size, torch_device)
        obs, act, rew = batch["obs"], batch["act"], batch["rew"]
        next_obs, terminated = batch["next_obs"], batch["terminated"]
        temperature = log_alpha.detach().exp() if learns_alpha else alpha

        # One step on the critics
        with torch.no_grad():
            a2, logp_a2 = ac.pi(next_obs)
            q_next = q_targ(next_obs, a2)
            backup = soft_backup(rew, terminated, q_next, logp_a2, temperature, gamma)
        q_vals = q(obs, act)
        loss_q = critic_loss(q_vals, backup)
        q_params.grad.zero_()
        loss_q.backward()
        q_optimizer.step(weight)  # averages the gradient over ranks first

        # One step on the policy
        with q_frozen:
            pi, logp = ac.pi(obs)
            loss_pi = policy_loss(logp, q(obs, pi), temperature)
            pi_params.grad.zero_()
            loss_pi.backward()
        pi_optimizer.step(weight)

        # One step on the temperature
        if learns_alpha:
            log_alpha.grad.zero_()
            temperature_loss(log_alpha, logp, target_entropy).backward()
            alpha_optimizer.step(weight)
            logger.store(Alpha=temperature)

        # One step on the targets
        with torch.no_grad():
            q_targ_params.lerp_(q_params, 1 - polyak)

        logger.store(Q1Vals=q_vals[0], Q2Vals=q_vals[1], LogPi=logp, LossPi=loss_pi, LossQ=loss_q)

    # Replays what the function does, without Python's overhead. Ranks that share a GPU have one
    # learner, which updates for all of them.
    update = on_learners(capture(update, torch_device))

    # Checkpoints: a resumed run starts from the newest one, a new run from step 0
    total_steps = epochs * steps_per_epoch
    parts = dict(ac=ac, q_targ=q_targ, pi_optimizer=pi_optimizer, q_optimizer=q_optimizer)
    parts |= dict(log_alpha=log_alpha, alpha_optimizer=alpha_optimizer) if learns_alpha else {}
    parts |= dict(buf=buf, rng=rng, env=env, test_env=test_env)
    checkpoint = Checkpoint(
        logger, checkpoint_every, steps_per_epoch, total_steps, meet_every=update_every, **parts
    )
    start = checkpoint.restore()
    policy.refresh()
    obs, ep_ret, ep_len = env.continue_episode()
    stops = False
    logger.begin()

    for t in range(start.t + 1, total_steps + 1):
        # One rank steps its environment at each t; the ranks take turns
        if t % num_ranks == rank:
            act = policy(obs) if t > start_steps else env.random_action()
            next_obs, rew, terminated, truncated, _ = env.step(act)
            buf.store(obs, act, rew, next_obs, terminated)
            ep_ret += rew
            ep_len += 1
            obs = next_obs

            if terminated or truncated or ep_len >= max_ep_len:
                logger.store(EpRet=ep_ret, EpLen=ep_len)
                obs, _ = env.reset()
                ep_ret, ep_len = 0.0, 0

        if t >= update_after and t % update_every == 0:
            buf.gather()
            for _ in range(update_every):
                update()
            policy.refresh()

        if t % steps_per_epoch == 0:
            epoch = t // steps_per_epoch
            run_test_episodes(policy, test_env, num_test_episodes, max_ep_len, logger)

            logger.check_finite("LossPi", "LossQ", where=f"{env.name}, epoch {epoch} (step {t})")
            logger.save_best("TestEpRet")
            if epoch % save_freq == 0 or epoch == epochs:
                logger.save_state()

            logger.log_tabular("Epoch", epoch)
            logger.log_tabular("EpRet", with_min_and_max=True)
            logger.log_tabular("TestEpRet", with_min_and_max=True)
            logger.log_tabular("EpLen", average_only=True)
            logger.log_tabular("TestEpLen", average_only=True)
            logger.log_tabular("TotalEnvInteracts", t)
            logger.log_tabular("Q1Vals", with_min_and_max=True)
            logger.log_tabular("Q2Vals", with_min_and_max=True)
            logger.log_tabular("LogPi", with_min_and_max=True)
            logger.log_tabular("LossPi", average_only=True)
            logger.log_tabular("LossQ", average_only=True)
            if learns_alpha:
                logger.log_tabular("Alpha", average_only=True)
            logger.log_tabular("Time", time.time() - start.start_time)
            logger.dump_tabular()
            stops = asks_to_stop(on_epoch, logger.row, ac)

        checkpoint.step(t, is_last=stops)
        if stops:
            break

    env.close()
    test_env.close()
    return ac
