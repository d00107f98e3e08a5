"""Deep Deterministic Policy Gradient.

DDPG is Q-learning for continuous actions: a deterministic policy, trained by the critic's gradient,
learns the action that maximises Q. Target networks, which follow the trained networks slowly, keep
the critic's target from moving with the critic. DDPG learns off-policy from a replay buffer, and
explores by adding Gaussian noise to the policy's actions.

Paper: arXiv:1509.02971. Key equations, with d = 1 where s2 is terminal:

    backup = r + gamma (1 - d) Q_targ(s2, pi_targ(s2))                    (eq. 5)
    L(Q)   = E[ (Q(s, a) - backup)^2 ]                                    (eq. 4)
    L(pi)  = -E[ Q(s, pi(s)) ]                                            (gradient: eq. 6)

Names: backup is y in the paper, pi is mu, polyak is 1 - tau.

Differs from the paper: the exploration noise is uncorrelated instead of an Ornstein-Uhlenbeck
process; there is no batch normalisation and no weight decay; the first start_steps actions are
random, and updates come in blocks of update_every. Differs from Spinning Up: noise is scaled
by half the range of each action dimension, so that bounds may differ by dimension and be
asymmetric.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spinup.algos import ALGORITHMS
from spinup.fast.capture import capture
from spinup.utils.acting import acting_policy
from spinup.utils.buffers import ReplayBuffer
from spinup.utils.checkpoint import Checkpoint
from spinup.utils.contract import check_actor_critic
from spinup.utils.devices import choose_device
from spinup.utils.envs import (
    EnvFn,
    box_bounds,
    check_action_space,
    describe_env,
    make_envs,
    seed_everything,
)
from spinup.utils.evaluation import run_test_episodes
from spinup.utils.flat import flatten_each, frozen
from spinup.utils.groups import group_share, on_learners, this_group
from spinup.utils.logx import EpochLogger
from spinup.utils.mpi_pytorch import sync_params
from spinup.utils.mpi_tools import num_procs, proc_id
from spinup.utils.nets import SingleCriticActorCritic
from spinup.utils.normalization import NormalizedActorCritic, normalizer_of
from spinup.utils.optim import Adam
from spinup.utils.training import asks_to_stop, training_run


def q_backup(rew: Tensor, terminated: Tensor, q_targ: Tensor, gamma: float) -> Tensor:
    """Computes the target of the critic (eq. 5 of arXiv:1509.02971).

    Args:
        rew: rewards, ``(batch,)``.
        terminated: 1 where the next state is terminal, else 0, ``(batch,)``.
        q_targ: target critic at the next state and action, ``(batch,)``.
        gamma: discount factor.

    Returns:
        Targets ``(batch,)``.
    """
    return rew + gamma * (1 - terminated) * q_targ


def critic_loss(q: Tensor, backup: Tensor) -> Tensor:
    """Computes the mean squared error of the critic against targets, both ``(batch,)``."""
    return (q - backup).square().mean()


def policy_loss(q_pi: Tensor) -> Tensor:
    """Computes the policy's loss from the critic's values of its actions, ``(batch,)``."""
    return -q_pi.mean()


@training_run
def ddpg(
    env_fn: EnvFn,
    actor_critic: Callable[..., Any] = SingleCriticActorCritic,
    ac_kwargs: dict[str, Any] | None = None,
    seed: int = 0,
    steps_per_epoch: int = 4000,
    epochs: int = 100,
    replay_size: int = int(1e6),
    gamma: float = 0.99,
    polyak: float = 0.995,
    pi_lr: float = 1e-3,
    q_lr: float = 1e-3,
    batch_size: int = 100,
    start_steps: int = 10000,
    update_after: int = 1000,
    update_every: int = 50,
    act_noise: float = 0.1,
    num_test_episodes: int = 10,
    max_ep_len: int = 1000,
    logger_kwargs: dict[str, Any] | None = None,
    save_freq: int = 1,
    device: str = "cpu",
    checkpoint_every: float = 300,
    normalize_obs: bool = False,
    on_epoch: Callable[[dict[str, Any], torch.nn.Module], Any] | None = None,
) -> torch.nn.Module:
    """Trains a policy by Deep Deterministic Policy Gradient.

    Args:
        env_fn: Gymnasium id, or a function that returns a new environment. Its action space is a
            bounded Box.
        actor_critic: class or function, called with ``(observation_space, action_space,
            **ac_kwargs)``. It returns a module with ``pi(obs)``, which returns differentiable
            actions ``(batch, act_dim)``; a critic ``q(obs, act)``, which returns values
            ``(batch,)``; and ``act(obs)``, which returns the action for one observation as an
            array. Policy and critic must not share parameters.
        ac_kwargs: keyword arguments for `actor_critic`.
        seed: seed of all random generators; rank r uses ``seed + 10000 * r``.
        steps_per_epoch: environment steps per epoch, summed over ranks.
        epochs: number of epochs.
        replay_size: capacity of the replay buffers in transitions, summed over ranks.
        gamma: discount factor, in [0, 1].
        polyak: interpolation factor of the target networks, in [0, 1], usually close to 1. Each
            update sets ``targ = polyak * targ + (1 - polyak) * main``.
        pi_lr: learning rate of the policy.
        q_lr: learning rate of the critic.
        batch_size: transitions in a minibatch, summed over ranks.
        start_steps: environment steps at the start of the run that take uniformly random actions.
        update_after: environment steps before the first update.
        update_every: environment steps between blocks of updates, each of `update_every` updates.
        act_noise: standard deviation of the exploration noise, in units of half the range of each
            action dimension (1 for actions in [-1, 1]).
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
    config = dict(algorithm="spinup.ddpg", **locals())
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
    check_action_space(env.action_space, "ddpg", ALGORITHMS)
    logger.save_config(describe_env(env))

    # Networks, identical on all ranks
    ac = actor_critic(env.observation_space, env.action_space, **(ac_kwargs or {}))
    ac = check_actor_critic(ac, env, torch_device, "act", "q")
    if normalize_obs:
        ac = NormalizedActorCritic(ac, env.observation_space)
    pi_params, q_params = flatten_each(ac.pi, ac.q)
    q_frozen = frozen(ac.q)
    sync_params(ac)
    policy = acting_policy(ac, rng, this_group())
    logger.setup_pytorch_saver(ac)
    logger.log(f"Number of parameters: pi {len(pi_params)}, q {len(q_params)}")

    # Targets
    pi_targ, q_targ = deepcopy(ac.pi).requires_grad_(False), deepcopy(ac.q).requires_grad_(False)
    pi_targ_params, q_targ_params = flatten_each(pi_targ, q_targ)

    # Buffer
    spaces = env.observation_space, env.action_space
    buf = ReplayBuffer(*spaces, group_share(replay_size), rng, normalizer_of(ac))

    # Optimizers
    pi_optimizer = Adam(pi_params, pi_lr, loss=f"LossPi in {env.name}")
    q_optimizer = Adam(q_params, q_lr, loss=f"LossQ in {env.name}")

    # Action bounds, and the unit of the noise
    low, high = box_bounds(env.action_space)
    half_range = (high - low) / 2

    def explore(obs):
        noise = act_noise * half_range * rng.standard_normal(len(low), dtype=np.float32)
        return np.clip(policy(obs) + noise, low, high)

    def update():
        batch = buf.sample_batch(local_batch_size, torch_device)
        obs, act, rew = batch["obs"], batch["act"], batch["rew"]
        next_obs, terminated = batch["next_obs"], batch["terminated"]

        # One step on the critic
        with torch.no_grad():
            backup = q_backup(rew, terminated, q_targ(next_obs, pi_targ(next_obs)), gamma)
        q_vals = ac.q(obs, act)
        loss_q = critic_loss(q_vals, backup)
        q_params.grad.zero_()
        loss_q.backward()
        q_optimizer.step(weight)  # averages the gradient over ranks first
        logger.store(QVals=q_vals, LossQ=loss_q)

        # One step on the policy
        with q_frozen:
            loss_pi = policy_loss(ac.q(obs, ac.pi(obs)))
            pi_params.grad.zero_()
            loss_pi.backward()
        pi_optimizer.step(weight)
        logger.store(LossPi=loss_pi)

        # One step on the targets
        with torch.no_grad():
            pi_targ_params.lerp_(pi_params, 1 - polyak)
            q_targ_params.lerp_(q_params, 1 - polyak)

    # Replays what the function does, without Python's overhead. Ranks that share a GPU have one
    # learner, which updates for all of them.
    update = on_learners(capture(update, torch_device))

    # Checkpoints: a resumed run starts from the newest one, a new run from step 0
    total_steps = epochs * steps_per_epoch
    parts = dict(ac=ac, pi_targ=pi_targ, q_targ=q_targ)
    parts |= dict(pi_optimizer=pi_optimizer, q_optimizer=q_optimizer)
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
            act = explore(obs) if t > start_steps else env.random_action()
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
            logger.log_tabular("QVals", with_min_and_max=True)
            logger.log_tabular("LossPi", average_only=True)
            logger.log_tabular("LossQ", average_only=True)
            logger.log_tabular("Time", time.time() - start.start_time)
            logger.dump_tabular()
            stops = asks_to_stop(on_epoch, logger.row, ac)

        checkpoint.step(t, is_last=stops)
        if stops:
            break

    env.close()
    test_env.close()
    return ac
