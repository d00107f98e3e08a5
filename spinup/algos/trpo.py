"""Trust Region Policy Optimization.

TRPO takes the largest step on the policy that a limit on the KL divergence allows. The distance
between policies is measured by their distributions, not their parameters, so that the step is a
natural gradient: the gradient multiplied by the inverse of the Fisher information matrix. Conjugate
gradient finds this step from products of the matrix and vectors; a line search then ensures that
the KL divergence is within the limit and that the objective has improved.

Paper: arXiv:1502.05477. Key equations, with r = pi(a|s) / pi_old(a|s), g the gradient of L(pi), and
F the Fisher information matrix:

    L(pi) = -E[ r A ]                    (eq. 14, negated)
    step  = -sqrt(2 delta / (x^T F x)) x,  with F x = g               (appendix C)
    F     = E[ J^T M J ],  J the Jacobian of the distribution's parameters (such as its mean) with
            respect to the network's, and M the Fisher matrix of the distribution's parameters
    L(V)  = E[ (V(s) - R)^2 ],  R the discounted return-to-go         (minimised)

Names: adv is A, ret is R, lam is GAE's lambda.

Differs from the paper: advantages are estimated by GAE, with a value function that is fitted by
gradient steps; F is damped. Differs from Spinning Up (whose TRPO exists in TensorFlow 1 only):
products with F take first derivatives only; the objective must improve strictly; an episode that is
unfinished at the end of an epoch continues in the next epoch, so that long episodes end and are
logged on any number of ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence

from spinup.algos import ALGORITHMS
from spinup.fast.capture import capture
from spinup.utils.acting import acting_policy
from spinup.utils.checkpoint import Checkpoint
from spinup.utils.contract import check_actor_critic
from spinup.utils.devices import choose_device
from spinup.utils.envs import (
    EnvFn,
    check_action_space,
    describe_env,
    make_env,
    seed_everything,
    space_dim,
)
from spinup.utils.flat import flatten_each
from spinup.utils.forward_mode import jvp
from spinup.utils.groups import group_share, on_learners, this_group
from spinup.utils.logx import EpochLogger
from spinup.utils.mpi_pytorch import mpi_avg_grads, sync_params
from spinup.utils.mpi_tools import mpi_avg, proc_id, rank_share
from spinup.utils.normalization import NormalizedActorCritic, normalizer_of
from spinup.utils.on_policy_nets import MLPActorCritic
from spinup.utils.optim import Adam
from spinup.utils.training import asks_to_stop, training_run
from spinup.utils.trajectories import TrajectoryBuffer


def policy_loss(logp: Tensor, logp_old: Tensor, adv: Tensor) -> Tensor:
    """Computes the negated surrogate objective (eq. 14 of arXiv:1502.05477).

    Args:
        logp: log-probabilities of the actions under the new policy, ``(batch,)``.
        logp_old: log-probabilities of the actions under the old policy, ``(batch,)``.
        adv: advantages, ``(batch,)``.
    """
    return -(torch.exp(logp - logp_old) * adv).mean()


def value_loss(val: Tensor, ret: Tensor) -> Tensor:
    """Computes the mean squared error of values against returns-to-go, both ``(batch,)``."""
    return (val - ret).square().mean()


def statistics(pi: Distribution) -> list[Tensor]:
    """Returns the parameters in which a distribution's Fisher information matrix is diagonal.

    Args:
        pi: a diagonal Gaussian, for which these are its means and standard deviations, each
            ``(batch, act_dim)``; or a categorical distribution, for which these are its
            log-probabilities ``(batch, n)``.

    Raises:
        ValueError: the distribution is of another kind.
    """
    pi = pi.base_dist if isinstance(pi, Independent) else pi
    if isinstance(pi, Normal):
        return [pi.mean, pi.stddev]
    if isinstance(pi, Categorical):
        return [pi.logits]
    raise ValueError(
        f"TRPO can't use a policy with a {type(pi).__name__}: return a Normal, an Independent "
        "Normal or a Categorical, or use PPO"
    )


@torch.no_grad()
def fisher_information(pi: Distribution) -> list[Tensor]:
    """Returns the diagonal of the Fisher information matrix, in the shapes of `statistics`."""
    stats = statistics(pi)
    if len(stats) == 2:
        precision = stats[1] ** -2
        return [precision, 2 * precision]
    return [stats[0].exp()]


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, num_iters: int, tolerance: float = 1e-10
) -> tuple[Tensor, Tensor]:
    """Solves ``A x = b`` approximately, for a symmetric positive definite matrix A.

    Sums are in double precision, because the iterations amplify rounding errors.

    Args:
        product: function that returns ``A v``.
        b: right-hand side, ``(n,)``.
        num_iters: maximum number of iterations, each of which takes one product.
        tolerance: the iterations stop when the squared norm of the residual, divided by that of
            `b`, is at most this.

    Returns:
        The solution x ``(n,)``, which is zero if `b` is, and ``A x``.
    """
    residual = b.to(torch.float64, copy=True)
    x, direction = torch.zeros_like(residual), residual.clone()
    square = residual @ residual
    least = tolerance * square
    for _ in range(num_iters):
        if square <= least:
            break
        image = product(direction.to(b.dtype)).double()
        alpha = square / (direction @ image)
        x += alpha * direction
        residual -= alpha * image
        square, before = residual @ residual, square
        direction = residual + square / before * direction
    return x.to(b.dtype), (b - residual).to(b.dtype)


@training_run
def trpo(
    env_fn: EnvFn,
    actor_critic: Callable[..., Any] = MLPActorCritic,
    ac_kwargs: dict[str, Any] | None = None,
    seed: int = 0,
    steps_per_epoch: int = 4000,
    epochs: int = 50,
    gamma: float = 0.99,
    delta: float = 0.01,
    vf_lr: float = 1e-3,
    train_v_iters: int = 80,
    damping_coeff: float = 0.1,
    cg_iters: int = 10,
    backtrack_iters: int = 10,
    backtrack_coeff: float = 0.8,
    lam: float = 0.97,
    max_ep_len: int = 1000,
    logger_kwargs: dict[str, Any] | None = None,
    save_freq: int = 10,
    algo: Literal["trpo", "npg"] = "trpo",
    device: str = "cpu",
    checkpoint_every: float = 300,
    normalize_obs: bool = False,
    on_epoch: Callable[[dict[str, Any], torch.nn.Module], Any] | None = None,
) -> torch.nn.Module:
    """Trains a policy by Trust Region Policy Optimization.

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
        delta: limit of the KL divergence between old and new policy, usually 0.001 to 0.05.
        vf_lr: learning rate of the value function.
        train_v_iters: number of gradient steps on the value function per epoch.
        damping_coeff: multiple of the identity that is added to the Fisher matrix, usually 0 to
            0.1.
        cg_iters: maximum number of iterations of conjugate gradient.
        backtrack_iters: maximum number of step lengths that the line search tries.
        backtrack_coeff: ratio of each step length to the one before, in (0, 1).
        lam: lambda of GAE, in [0, 1], usually close to 1.
        max_ep_len: environment steps after which an episode is truncated.
        logger_kwargs: keyword arguments for the logger: ``output_dir``, ``exp_name``,
            ``overwrite``, ``resume``, ``verbose``, ``tensorboard``, ``wandb``.
        save_freq: epochs between saves of the policy. The last epoch is always saved.
        algo: ``trpo``, or ``npg`` for the natural policy gradient: the full step, without a line
            search.
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
    config = dict(algorithm="spinup.trpo", **locals())
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
    check_action_space(env.action_space, "trpo", ALGORITHMS)
    logger.save_config(describe_env(env))

    # Networks, identical on all ranks
    ac = actor_critic(env.observation_space, env.action_space, **(ac_kwargs or {}))
    ac = check_actor_critic(ac, env, torch_device, "v", "logp")
    if normalize_obs:
        ac = NormalizedActorCritic(ac, env.observation_space)
    pi_params, v_params = flatten_each(ac.pi, ac.v)
    sync_params(ac)
    policy = acting_policy(ac, rng, this_group())
    # Raises now, not after an epoch, if the policy has no `statistics` or they have no derivatives
    zeros = torch.zeros(1, space_dim(env.observation_space), device=torch_device)
    jvp(lambda pi: statistics(pi(zeros)[0]), ac.pi, torch.zeros_like(pi_params))
    logger.setup_pytorch_saver(ac)
    logger.log(f"Number of parameters: pi {len(pi_params)}, v {len(v_params)}")

    # Buffer
    spaces = env.observation_space, env.action_space
    buf = TrajectoryBuffer(*spaces, local_steps, gamma, lam, normalizer_of(ac))

    # Optimizer
    vf_optimizer = Adam(v_params, vf_lr, loss=f"LossV in {env.name}")

    def compute_losses(data, pi_old, logp_old):
        """Computes both losses, KL(old || new) and the entropy, averaged over ranks."""
        with torch.no_grad():
            pi, logp = ac.pi(data["obs"], data["act"])
            loss_pi = policy_loss(logp, logp_old, data["adv"])
            loss_v = value_loss(ac.v(data["obs"]), data["ret"])
            kl = kl_divergence(pi_old, pi).sum() / buf.size  # a Normal has one KL per dimension
            values = [loss_pi, loss_v, kl, pi.entropy().mean()]
        return mpi_avg(torch.stack(values).cpu().numpy(), weight).tolist()

    def natural_gradient(data, pi_old, logp_old):
        """Returns the step whose KL divergence is `delta`, to second order."""
        _, logp = ac.pi(data["obs"], data["act"])
        pi_params.grad.zero_()
        policy_loss(logp, logp_old, data["adv"]).backward()
        mpi_avg_grads(pi_params, weight)
        gradient, information = pi_params.grad.clone(), fisher_information(pi_old)

        def fisher_product(v):
            stats, derivatives = jvp(lambda pi: statistics(pi(data["obs"])[0]), ac.pi, v)  # J v
            weighted = [m * x / buf.size for m, x in zip(information, derivatives)]  # M J v
            pi_params.grad.zero_()
            sum((x * w).sum() for x, w in zip(stats, weighted)).backward()  # J^T M J v
            mpi_avg_grads(pi_params, weight)
            return pi_params.grad + damping_coeff * v

        x, fisher_x = conjugate_gradient(fisher_product, gradient, cg_iters)
        curvature = x @ fisher_x
        if not curvature.isfinite():
            raise FloatingPointError(
                f"The natural gradient in {env.name} is NaN or infinite: raise damping_coeff, or "
                "check the scale of the rewards"
            )
        return -torch.sqrt(2 * delta / curvature) * x if curvature > 0 else torch.zeros_like(x)

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
            # A copy, because the distribution may hold the parameters, which the step changes
            old = deepcopy(ac.pi(data["obs"], data["act"]))
            params_old = pi_params.clone()
        loss_pi_old, loss_v_old, _, entropy = compute_losses(data, *old)

        # One step on the policy: the longest that the line search accepts (npg: the full step)
        step = natural_gradient(data, *old)
        for backtracks in range(backtrack_iters):
            with torch.no_grad():
                pi_params.copy_(params_old + backtrack_coeff**backtracks * step)
            loss_pi, _, kl, _ = compute_losses(data, *old)
            if algo == "npg" or (kl <= delta and loss_pi < loss_pi_old):
                break
        else:
            logger.log("The line search failed: the policy stays as it was.", detail=True)
            backtracks = backtrack_iters
            with torch.no_grad():
                pi_params.copy_(params_old)

        # Gradient steps on the value function
        value_gradient.check_next()
        for _ in range(train_v_iters):
            value_gradient()
            vf_optimizer.step(weight)  # averages the gradient over ranks first

        loss_pi, loss_v, kl, _ = compute_losses(data, *old)
        logger.store(VVals=data["val"], LossPi=loss_pi_old, LossV=loss_v_old, Entropy=entropy)
        logger.store(DeltaLossPi=loss_pi - loss_pi_old, DeltaLossV=loss_v - loss_v_old)
        logger.store(KL=kl, BacktrackIters=backtracks)

    # Checkpoints: a resumed run starts from the newest one, a new run from step 0
    total_steps = epochs * steps_per_epoch
    parts = dict(ac=ac, vf_optimizer=vf_optimizer, rng=rng, env=env)
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
        logger.log_tabular("BacktrackIters", average_only=True)
        logger.log_tabular("Time", time.time() - start.start_time)
        logger.dump_tabular()

        stops = asks_to_stop(on_epoch, logger.row, ac)
        checkpoint.step(epoch * steps_per_epoch, is_last=stops)
        if stops:
            break

    env.close()
    return ac
