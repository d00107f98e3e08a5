"""Proximal Policy Optimization, with a clipped objective.

PPO improves the policy as much as possible on data from the old policy, without moving so far that
performance collapses. The clipped objective gives no incentive to move the probability ratio of
the new to the old policy outside 1 ± epsilon. An epoch's policy updates also stop early when the KL
divergence between the two policies is too large. Advantages are estimated by GAE.

Paper: arXiv:1707.06347. Key equations, with r = pi(a|s) / pi_old(a|s):

    L(pi) = E[ min( r A, clip(r, 1 - epsilon, 1 + epsilon) A ) ]       (eq. 7, maximised)
    L(V)  = E[ (V(s) - R)^2 ],  R the discounted return-to-go          (minimised)

Names: clip_ratio is epsilon, adv is A, ret is R, lam is GAE's lambda.

Differs from the paper: policy and value function share no parameters and have separate optimizers;
by default, updates use the epoch's whole batch, not minibatches, and there is no entropy bonus;
policy updates stop early on the KL divergence. Differs from Spinning Up: an episode that is
unfinished at the end of an epoch continues in the next epoch, so that long episodes end and are
logged on any number of ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

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


def policy_loss(
    logp: Tensor, logp_old: Tensor, adv: Tensor, clip_ratio: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes the negated clipped objective (eq. 7 of arXiv:1707.06347).

    Args:
        logp: log-probabilities of the actions under the new policy, ``(batch,)``.
        logp_old: log-probabilities of the actions under the old policy, ``(batch,)``.
        adv: advantages, ``(batch,)``.
        clip_ratio: distance of the probability ratio from 1 at which the objective is clipped.

    Returns:
        The loss, and a dict with ``KL``, the estimated divergence KL(old || new), and ``ClipFrac``,
        the fraction of clipped ratios.
    """
    ratio = torch.exp(logp - logp_old)
    clipped = torch.clamp(ratio, 1 - clip_ratio, 1 + clip_ratio)
    loss = -torch.minimum(ratio * adv, clipped * adv).mean()
    info = dict(
        KL=(logp_old - logp.detach()).mean(),
        ClipFrac=(ratio.detach() != clipped.detach()).float().mean(),
    )
    return loss, info


def value_loss(val: Tensor, ret: Tensor) -> Tensor:
    """Computes the mean squared error of values against returns-to-go, both ``(batch,)``."""
    return (val - ret).square().mean()


@training_run
def ppo(
    env_fn: EnvFn,
    actor_critic: Callable[..., Any] = MLPActorCritic,
    ac_kwargs: dict[str, Any] | None = None,
    seed: int = 0,
    steps_per_epoch: int = 4000,
    epochs: int = 50,
    gamma: float = 0.99,
    clip_ratio: float = 0.2,
    pi_lr: float = 3e-4,
    vf_lr: float = 1e-3,
    train_pi_iters: int = 80,
    train_v_iters: int = 80,
    lam: float = 0.97,
    max_ep_len: int = 1000,
    target_kl: float = 0.01,
    logger_kwargs: dict[str, Any] | None = None,
    save_freq: int = 10,
    device: str = "cpu",
    checkpoint_every: float = 300,
    normalize_obs: bool = False,
    on_epoch: Callable[[dict[str, Any], torch.nn.Module], Any] | None = None,
    ent_coef: float = 0.0,
    minibatch_size: int | None = None,
    lr_schedule: Literal["constant", "linear"] = "constant",
) -> torch.nn.Module:
    """Trains a policy by Proximal Policy Optimization.

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
        clip_ratio: distance of the probability ratio from 1 at which the objective is clipped,
            usually 0.1 to 0.3. Denoted epsilon.
        pi_lr: learning rate of the policy.
        vf_lr: learning rate of the value function.
        train_pi_iters: maximum number of gradient steps on the policy per epoch.
        train_v_iters: number of gradient steps on the value function per epoch.
        lam: lambda of GAE, in [0, 1], usually close to 1.
        max_ep_len: environment steps after which an episode is truncated.
        target_kl: desired KL divergence between old and new policy, usually 0.01 or 0.05. An
            epoch's policy updates stop early above 1.5 times this value.
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
        ent_coef: weight of an entropy bonus in the policy's loss, usually 0 to 0.02.
        minibatch_size: environment steps in a minibatch, summed over ranks. Each of the
            `train_pi_iters` and `train_v_iters` iterations is then a pass over the epoch's data in
            shuffled minibatches, and the KL divergence is checked before the last step of a pass.
            If None, each iteration is one step on the epoch's whole batch.
        lr_schedule: ``constant``, or ``linear``: both learning rates decrease linearly, and would
            reach 0 after the last epoch.

    Returns:
        The trained actor-critic.

    Raises:
        ValueError: a hyperparameter or a space can't be handled.
        FileExistsError: the output folder holds results.
        Interrupted: a signal stopped the run, after a checkpoint was saved.
        FloatingPointError: an observation, a reward or a loss is NaN or infinite.
    """
    config = dict(algorithm="spinup.ppo", **locals())
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
    check_action_space(env.action_space, "ppo", ALGORITHMS)
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

    def compute_losses(data):
        """Computes both losses and the statistics to log, averaged over ranks."""
        with torch.no_grad():
            pi, logp = ac.pi(data["obs"], data["act"])
            loss_pi, info = policy_loss(logp, data["logp_old"], data["adv"], clip_ratio)
            loss_v = value_loss(ac.v(data["obs"]), data["ret"])
            values = [loss_pi, loss_v, info["KL"], info["ClipFrac"], pi.entropy().mean()]
        return mpi_avg(torch.stack(values).cpu().numpy(), weight).tolist()

    # This rank's estimate of KL(old || new), always in the same memory, as captures require
    kl = torch.zeros((), device=torch_device)

    def policy_gradient(num_steps):
        batch = buf.part(num_steps)
        pi, logp = ac.pi(batch["obs"], batch["act"])
        loss_pi, info = policy_loss(logp, batch["logp_old"], batch["adv"], clip_ratio)
        if ent_coef > 0:
            loss_pi = loss_pi - ent_coef * pi.entropy().mean()
        pi_params.grad.zero_()
        loss_pi.backward()
        kl.add_(info["KL"] * (num_steps / buf.size))

    def value_gradient(num_steps):
        batch = buf.part(num_steps)
        loss_v = value_loss(ac.v(batch["obs"]), batch["ret"])
        v_params.grad.zero_()
        loss_v.backward()

    # Replays what the function does, without Python's overhead
    policy_gradient = capture(policy_gradient, torch_device)
    value_gradient = capture(value_gradient, torch_device)

    @on_learners  # ranks that share a GPU have one learner, which updates for all of them
    def update():
        data = buf.get(ac.v, torch_device)
        with torch.no_grad():
            buf.add(logp_old=ac.pi(data["obs"], data["act"])[1])
        loss_pi_old, loss_v_old, _, _, entropy = compute_losses(data)

        # Gradient steps on the policy, until it is too far from the old one
        policy_gradient.check_next()
        stop_iter, is_far = 0, False
        while stop_iter < train_pi_iters and not is_far:
            kl.zero_()
            for num_steps, num_total, is_last in buf.minibatches(minibatch_size, rng):
                policy_gradient(num_steps)
                is_far = is_last and mpi_avg(kl.item(), weight) > 1.5 * target_kl
                if not is_far:
                    pi_optimizer.step(num_steps / num_total)  # averages over ranks first
            stop_iter += 0 if is_far else 1
        if is_far:
            early = f"Early stopping at step {stop_iter}: the KL exceeded 1.5 x target_kl."
            logger.log(early, detail=True)

        # Gradient steps on the value function
        value_gradient.check_next()
        for _ in range(train_v_iters):
            for num_steps, num_total, _ in buf.minibatches(minibatch_size, rng):
                value_gradient(num_steps)
                vf_optimizer.step(num_steps / num_total)

        loss_pi, loss_v, new_kl, clip_frac, _ = compute_losses(data)
        logger.store(VVals=data["val"], LossPi=loss_pi_old, LossV=loss_v_old, Entropy=entropy)
        logger.store(DeltaLossPi=loss_pi - loss_pi_old, DeltaLossV=loss_v - loss_v_old)
        logger.store(KL=new_kl, ClipFrac=clip_frac, StopIter=stop_iter)

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
        if lr_schedule == "linear":
            left = 1 - (epoch - 1) / epochs
            pi_optimizer.lr, vf_optimizer.lr = pi_lr * left, vf_lr * left
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
        logger.log_tabular("ClipFrac", average_only=True)
        logger.log_tabular("StopIter", average_only=True)
        logger.log_tabular("Time", time.time() - start.start_time)
        logger.dump_tabular()

        stops = asks_to_stop(on_epoch, logger.row, ac)
        checkpoint.step(epoch * steps_per_epoch, is_last=stops)
        if stops:
            break

    env.close()
    return ac
