"""Vanilla Policy Gradient, with a learned value function as baseline.

VPG raises the log-probability of actions in proportion to how much better they did than expected.
It takes one gradient step on the policy for each batch of data, which must come from that policy.
The advantages are estimated by GAE, with a value function that is fitted to the returns-to-go.

Paper: Sutton et al., "Policy Gradient Methods for Reinforcement Learning with Function
Approximation" (2000); advantages from arXiv:1506.02438. Key equations:

    grad J(pi) = E[ grad log pi(a|s) A ],  so that  L(pi) = -E[ log pi(a|s) A ]   (minimised)
    L(V)       = E[ (V(s) - R)^2 ],  R the discounted return-to-go                (minimised)

Names: adv is A, ret is R, lam is GAE's lambda.

Differs from the paper: as in all common implementations, the gradient isn't weighted by gamma^t;
advantages are normalised; the step is Adam's. Differs from Spinning Up: KL and DeltaLossPi are
measured after the policy's step (Spinning Up measured them before it and logged 0); an episode that
is unfinished at the end of an epoch continues in the next epoch, so that long episodes end and are
logged on any number of ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spinup.algos import ALGORITHMS
from spinup.fast.capture import capture
from spinup.utils.acting import acting_policy
from spinup.utils.checkpoint import Checkpoint
from spinup.utils.contract import check_actor_critic
from spinup.utils.devices import choose_device
from spinup.utils.envs import EnvFn, check_action_space, describe_env, make_env, seed_everything
from spinup.utils.flat import flatten_each
from spinup.utils.groups import group_share, on_learners, this_group
from spinup.utils.logx import EpochLogger
from spinup.utils.mpi_pytorch import sync_params
from spinup.utils.mpi_tools import mpi_avg, proc_id, rank_share
from spinup.utils.normalization import NormalizedActorCritic, normalizer_of
from spinup.utils.on_policy_nets import MLPActorCritic
from spinup.utils.optim import Adam
from spinup.utils.training import asks_to_stop, training_run
from spinup.utils.trajectories import TrajectoryBuffer


def policy_loss(logp: Tensor, adv: Tensor) -> Tensor:
    """Computes a loss whose gradient is the negated policy gradient.

    Args:
        logp: log-probabilities of the actions, ``(batch,)``.
        adv: advantages, ``(batch,)``.
    """
    return -(logp * adv).mean()


def value_loss(val: Tensor, ret: Tensor) -> Tensor:
    """Computes the mean squared error of values against returns-to-go, both ``(batch,)``."""
    return (val - ret).square().mean()


@training_run
def vpg(
    env_fn: EnvFn,
    actor_critic: Callable[..., Any] = MLPActorCritic,
    ac_kwargs: dict[str, Any] | None = None,
    seed: int = 0,
    steps_per_epoch: int = 4000,
    epochs: int = 50,
    gamma: float = 0.99,
    pi_lr: float = 3e-4,
    vf_lr: float = 1e-3,
    train_v_iters: int = 80,
    lam: float = 0.97,
    max_ep_len: int = 1000,
    logger_kwargs: dict[str, Any] | None = None,
    save_freq: int = 10,
    device: str = "cpu",
    checkpoint_every: float = 300,
    normalize_obs: bool = False,
    on_epoch: Callable[[dict[str, Any], torch.nn.Module], Any] | None = None,
) -> torch.nn.Module:
    """Trains a policy by Vanilla Policy Gradient.

    Args:
        env_fn: Gymnasium id, or a function that returns a new environment. Its action space is a
            Box or Discrete.
        actor_critic: class or function, called with ``(observation_space, action_space,
            **ac_kwargs)``. It returns a module with ``pi(obs, act)``, which returns a torch
            distribution over actions and the log-probabilities of `act` ``(batch,)`` (None without
            `act`); ``v(obs)``, which returns values ``(batch,)``; and ``act(obs)``, which returns
            the action for one observation as an array. `pi` and `v` must not share parameters.
        ac_kwargs: keyword arguments for `actor_critic`.
        seed: seed of all random generators; rank r uses ``seed + 10000 * r``.
        steps_per_epoch: environment steps per epoch, summed over ranks.
        epochs: number of epochs, each of which collects data and then trains on it.
        gamma: discount factor, in [0, 1].
        pi_lr: learning rate of the policy.
        vf_lr: learning rate of the value function.
        train_v_iters: number of gradient steps on the value function per epoch.
        lam: lambda of GAE, in [0, 1], usually close to 1.
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
    config = dict(algorithm="spinup.vpg", **locals())
    torch_device = choose_device(device)
    config["device"] = str(torch_device)

    # Ranks share each epoch's steps. A learner's gradient is weighted by its group's share.
    local_steps = rank_share(steps_per_epoch)
    weight = group_share(steps_per_epoch) / steps_per_epoch

    # Logger and configuration
    logger = EpochLogger(**(logger_kwargs or {}))
    logger.save_config(config)

    # Seeds
    seed += 10000 * proc_id()
    rng = seed_everything(seed)

    # Environment
    env = make_env(env_fn, seed)
    check_action_space(env.action_space, "vpg", ALGORITHMS)
    logger.save_config(describe_env(env))

    # Networks, identical on all ranks
    ac = actor_critic(env.observation_space, env.action_space, **(ac_kwargs or {}))
    ac = check_actor_critic(ac, env, torch_device, "v", "logp")
    if normalize_obs:
        ac = NormalizedActorCritic(ac, env.observation_space)
    pi_params, v_params = flatten_each(ac.pi, ac.v)
    sync_params(ac)
    policy = acting_policy(ac, rng, this_group())
    logger.setup_pytorch_saver(ac)
    logger.log(f"Number of parameters: pi {len(pi_params)}, v {len(v_params)}")

    # Buffer
    spaces = env.observation_space, env.action_space
    buf = TrajectoryBuffer(*spaces, local_steps, gamma, lam, normalizer_of(ac))

    # Optimizers
    pi_optimizer = Adam(pi_params, pi_lr, loss=f"LossPi in {env.name}")
    vf_optimizer = Adam(v_params, vf_lr, loss=f"LossV in {env.name}")

    def compute_losses(data, logp_old):
        """Computes both losses, KL(old || new) and the entropy, averaged over ranks."""
        with torch.no_grad():
            pi, logp = ac.pi(data["obs"], data["act"])
            loss_pi = policy_loss(logp, data["adv"])
            loss_v = value_loss(ac.v(data["obs"]), data["ret"])
            values = [loss_pi, loss_v, (logp_old - logp).mean(), pi.entropy().mean()]
        return mpi_avg(torch.stack(values).cpu().numpy(), weight).tolist()

    def value_gradient():
        loss_v = value_loss(ac.v(buf.data["obs"]), buf.data["ret"])
        v_params.grad.zero_()
        loss_v.backward()

    # Replays what the function does, without Python's overhead
    value_gradient = capture(value_gradient, torch_device)

    @on_learners  # ranks that share a GPU have one learner, which updates for all of them
    def update():
        data = buf.get(ac.v, torch_device)
        with torch.no_grad():
            logp_old = ac.pi(data["obs"], data["act"])[1]
        loss_pi_old, loss_v_old, _, entropy = compute_losses(data, logp_old)

        # One step on the policy
        _, logp = ac.pi(data["obs"], data["act"])
        pi_params.grad.zero_()
        policy_loss(logp, data["adv"]).backward()
        pi_optimizer.step(weight)  # averages the gradient over ranks first

        # Gradient steps on the value function
        value_gradient.check_next()
        for _ in range(train_v_iters):
            value_gradient()
            vf_optimizer.step(weight)

        loss_pi, loss_v, kl, _ = compute_losses(data, logp_old)
        logger.store(VVals=data["val"], LossPi=loss_pi_old, LossV=loss_v_old, Entropy=entropy)
        logger.store(DeltaLossPi=loss_pi - loss_pi_old, DeltaLossV=loss_v - loss_v_old)
        logger.store(KL=kl)

    # Checkpoints: a resumed run starts from the newest one, a new run from step 0
    total_steps = epochs * steps_per_epoch
    parts = dict(ac=ac, pi_optimizer=pi_optimizer, vf_optimizer=vf_optimizer, rng=rng, env=env)
    checkpoint = Checkpoint(
        logger, checkpoint_every, steps_per_epoch, total_steps, meet_every=steps_per_epoch, **parts
    )
    start = checkpoint.restore()
    policy.refresh()
    obs, ep_ret, ep_len = env.continue_episode()
    logger.begin()

    for epoch in range(start.t // steps_per_epoch + 1, epochs + 1):
        for t in range(local_steps):
            act = policy(obs)
            next_obs, rew, terminated, truncated, _ = env.step(act)
            buf.store(obs, act, rew)
            ep_ret += rew
            ep_len += 1
            obs = next_obs

            truncated = truncated or ep_len >= max_ep_len
            if terminated or truncated or t == local_steps - 1:
                buf.finish_path(None if terminated else obs)
            if terminated or truncated:
                logger.store(EpRet=ep_ret, EpLen=ep_len)
                obs, _ = env.reset()
                ep_ret, ep_len = 0.0, 0

        logger.save_best("EpRet")
        buf.gather()
        update()
        policy.refresh()

        where = f"{env.name}, epoch {epoch} (step {epoch * steps_per_epoch})"
        logger.check_finite("LossPi", "LossV", "DeltaLossPi", "DeltaLossV", where=where)
        if epoch % save_freq == 0 or epoch == epochs:
            logger.save_state()

        logger.log_tabular("Epoch", epoch)
        logger.log_tabular("EpRet", with_min_and_max=True)
        logger.log_tabular("EpLen", average_only=True)
        logger.log_tabular("VVals", with_min_and_max=True)
        logger.log_tabular("TotalEnvInteracts", epoch * steps_per_epoch)
        logger.log_tabular("LossPi", average_only=True)
        logger.log_tabular("LossV", average_only=True)
        logger.log_tabular("DeltaLossPi", average_only=True)
        logger.log_tabular("DeltaLossV", average_only=True)
        logger.log_tabular("Entropy", average_only=True)
        logger.log_tabular("KL", average_only=True)
        logger.log_tabular("Time", time.time() - start.start_time)
        logger.dump_tabular()

        stops = asks_to_stop(on_epoch, logger.row, ac)
        checkpoint.step(epoch * steps_per_epoch, is_last=stops)
        if stops:
            break

    env.close()
    return ac
