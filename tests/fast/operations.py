# ruff: noqa: E501, B008 (tables of operations)
"""Many operations of PyTorch as functions of matrices: `x` with a gradient, and `y` without."""

import torch
import torch.nn.functional as F

# Losses of x and y, with an argument `reduction`
LOSSES = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "huber": F.huber_loss,
    "kl_div": F.kl_div,
    "poisson_nll": F.poisson_nll_loss,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
    "soft_margin": F.soft_margin_loss,
    "gaussian_nll": lambda x, y, reduction: F.gaussian_nll_loss(x, y, y + 1, reduction=reduction),
    "cross_entropy": lambda x, y, reduction: F.cross_entropy(x, y.argmax(1), reduction=reduction),
    "nll": lambda x, y, reduction: F.nll_loss(x.log_softmax(1), y.argmax(1), reduction=reduction),
    "bce": lambda x, y, reduction: F.binary_cross_entropy(
        x.sigmoid(), y.sigmoid(), reduction=reduction
    ),
    "triplet": lambda x, y, reduction: F.triplet_margin_loss(x, y, y + 1, reduction=reduction),
    "cosine": lambda x, y, reduction: F.cosine_embedding_loss(
        x, y, torch.ones_like(y[:, 0]), reduction=reduction
    ),
}

ACTIVATIONS = [
    "relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign", "tanh",
    "sigmoid", "logsigmoid", "hardtanh", "hardsigmoid", "hardswish", "leaky_relu", "tanhshrink",
    "softshrink", "hardshrink",
]  # fmt: skip

UNARY = [
    "abs", "exp", "sin", "cos", "square", "neg", "sign", "floor", "round", "atan", "expm1", "erf",
    "sum", "mean", "std", "var", "amax", "amin", "max", "min", "median", "prod", "logsumexp", "norm",
    "argmax", "cumsum", "cumprod", "sort", "argsort", "topk", "flip", "t", "flatten", "tril", "diff",
    "softmax", "log_softmax", "isnan", "all", "any", "logcumsumexp", "diagonal", "trace", "roll",
]  # fmt: skip
_ARGUMENTS = dict.fromkeys(("cumsum", "cumprod", "softmax", "log_softmax", "logsumexp"), (1,))
_ARGUMENTS |= {"topk": (2,), "flip": ([0],), "logcumsumexp": (1,), "roll": (1,), "sort": (1,)}

OTHERS = {
    "clamp": lambda x, y: x.clamp(-0.5, 0.5),
    "clamp-tensors": lambda x, y: x.clamp(-y, y),
    "where": lambda x, y: torch.where(x > 0, x, y),
    "where-number": lambda x, y: torch.where(x > 0, 2.0, -1.0) * x,
    "cat": lambda x, y: torch.cat([x, y], 1),
    "stack": lambda x, y: torch.stack([x, y]).amax(0),
    "chunk": lambda x, y: torch.mul(*x.chunk(2, 1)),
    "split": lambda x, y: x.split([1, 3], 1)[1],
    "einsum": lambda x, y: torch.einsum("ij,kj->ik", x, y),
    "matmul": lambda x, y: x @ y.T,
    "bmm": lambda x, y: torch.bmm(x[None].expand(2, 6, 4), y.T[None].expand(2, 4, 6)),
    "outer": lambda x, y: torch.outer(x[0], y[0]),
    "gather": lambda x, y: x.gather(1, y.argmax(1, keepdim=True)),
    "index": lambda x, y: x[y.argmax(0)],
    "index-select": lambda x, y: x.index_select(0, y.argmax(0)),
    "take-along": lambda x, y: torch.take_along_dim(x, y.argsort(1), 1),
    "scatter": lambda x, y: torch.zeros_like(x).scatter(1, y.argsort(1), x),
    "scatter-add": lambda x, y: torch.zeros_like(x).scatter_add(1, y.argsort(1), x),
    "scatter-reduce": lambda x, y: x.scatter_reduce(1, y.argsort(1), y, "amax"),
    "index-add": lambda x, y: y.index_add(0, y.argmax(0), x[:4]),
    "index-put": lambda x, y: y.index_put((y.argmax(0),), x[:4], accumulate=True),
    "masked-fill": lambda x, y: x.masked_fill(y > 0.5, 0.0),
    "masked-inf": lambda x, y: x.masked_fill(y > 2.5, -torch.inf).logsumexp(1),
    "one-hot": lambda x, y: F.one_hot(torch.zeros_like(y[0]).long(), 4) * x[:4],
    "embedding": lambda x, y: F.embedding(y.argmax(0), x),
    "layer-norm": lambda x, y: F.layer_norm(x, (4,)),
    "group-norm": lambda x, y: F.group_norm(x, 2),
    "normalize": lambda x, y: F.normalize(x, dim=1),
    "conv1d": lambda x, y: F.conv1d(
        x[None], y[:, :, None].expand(6, 4, 1)[:2].repeat(1, 2, 1)[:, :6]
    ),
    "max-pool": lambda x, y: F.max_pool1d(x[None], 2),
    "avg-pool": lambda x, y: F.avg_pool1d(x[None], 2),
    "pad": lambda x, y: F.pad(x, (1, 1)),
    "attention": lambda x, y: F.scaled_dot_product_attention(x[None], y[None], y[None]),
    "number-minus": lambda x, y: 1 - x,
    "number-over": lambda x, y: 1 / (x.abs() + 1),
    "power": lambda x, y: x.pow(2) + y**x,
    "lerp": lambda x, y: torch.lerp(y, x, 0.3),
    "addcmul": lambda x, y: torch.addcmul(y, x, y, value=0.5),
    "atan2": lambda x, y: torch.atan2(x, y),
    "max-of-two": lambda x, y: torch.maximum(x, y) - torch.minimum(x, y),
    "max-dim": lambda x, y: x.max(1)[0],
    "quantile": lambda x, y: x.quantile(0.3),
    "cdist": lambda x, y: torch.cdist(x, y),
    "double": lambda x, y: x.double().mean(),
    "half": lambda x, y: x.half().float(),
    "bfloat16": lambda x, y: x.bfloat16().float(),
    "integers": lambda x, y: (y * 10).long() // 3,
    "arange": lambda x, y: torch.arange(4) * x,
    "linspace": lambda x, y: torch.linspace(0, 1, 4) * x,
    "full": lambda x, y: torch.full((4,), 2.0) * x,
    "eye": lambda x, y: x @ torch.eye(4),
    "in-place": lambda x, y: x.clone().mul_(2).add_(y).clamp_(0, 1),
    "slice-assignment": lambda x, y: _assigned(x, y),
    "inverse": lambda x, y: torch.linalg.inv(x.T @ x + torch.eye(4)),
    "solve": lambda x, y: torch.linalg.solve(x.T @ x + torch.eye(4), y.T),
    "sparse": lambda x, y: torch.sparse.mm(y.to_sparse(), x.T),
    "repeat": lambda x, y: x.repeat_interleave(2, 0),
    "meshgrid": lambda x, y: torch.meshgrid(x[0], y[0], indexing="ij")[0],
    "cross-ratio": lambda x, y: (x.unsqueeze(1) - y).norm(dim=-1),
    "normal": lambda x, y: torch.distributions.Normal(x, y + 1).log_prob(y),
    "categorical": lambda x, y: torch.distributions.Categorical(logits=x).entropy(),
    "custom-function": lambda x, y: _Doubled.apply(x),
    "histogram": lambda x, y: torch.bincount(y.argmax(1)),
    "unique": lambda x, y: y.unique(),
    "complex": lambda x, y: torch.fft.rfft(x).abs(),
    "vmap": lambda x, y: torch.vmap(torch.dot)(x, y),
}

# Random draws, as functions of y and a generator or None
DRAWS = {
    "randn": lambda y, g: torch.randn(6, 4, generator=g),
    "rand": lambda y, g: torch.rand(6, 4, generator=g),
    "randn_like": lambda y, g: torch.randn_like(y, generator=g) if g else torch.randn_like(y),
    "randint": lambda y, g: torch.randint(10, (6, 4), generator=g),
    "randperm": lambda y, g: torch.randperm(24, generator=g).reshape(6, 4),
    "normal": lambda y, g: torch.normal(y, 1.0, generator=g),
    "normal_": lambda y, g: torch.empty(6, 4).normal_(generator=g),
    "uniform_": lambda y, g: torch.empty(6, 4).uniform_(generator=g),
    "exponential_": lambda y, g: torch.empty(6, 4).exponential_(generator=g),
    "bernoulli": lambda y, g: torch.bernoulli(y.sigmoid(), generator=g),
    "bernoulli_": lambda y, g: torch.empty(6, 4).bernoulli_(0.3, generator=g),
    "multinomial": lambda y, g: torch.multinomial(y.abs() + 0.1, 4, generator=g),
    "dropout": lambda y, g: F.dropout(y, 0.5),
    "rand_like": lambda y, g: torch.rand_like(y),
    "randint_like": lambda y, g: torch.randint_like(y, 10),
    "sample": lambda y, g: torch.distributions.Normal(y, 1.0).sample(),
    "categorical": lambda y, g: torch.distributions.Categorical(logits=y).sample()[:, None] * y,
    "gumbel": lambda y, g: F.gumbel_softmax(y),
    "rrelu": lambda y, g: F.rrelu(y - 1, training=True),
}


def all_operations():
    """Returns functions of `x` and `y` by name."""
    made = {}
    for name, loss in LOSSES.items():
        for reduction in ("mean", "sum", "none"):
            made[f"{name}-{reduction}"] = lambda x, y, f=loss, r=reduction: f(x, y, reduction=r)
    for name in ACTIVATIONS:
        made[name] = lambda x, y, f=getattr(F, name): f(x)
    for name in UNARY:
        arguments = _ARGUMENTS.get(name, ())
        made[f"x.{name}"] = lambda x, y, f=getattr(torch.Tensor, name), a=arguments: f(x, *a)
    return made | OTHERS


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def _assigned(x, y):
    z = x.clone()
    z[:, 1] = y[:, 0]
    return z
