"""From a torch network to an unedited ONNX model: every parameter an initializer under its own name, BN still a node.

The way through ``torch.jit.trace`` comes first: it writes old opsets directly and keeps parameter names. Networks it
cannot do, and opsets it does not know, go through ``torch.export``, which starts at opset 18.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lorita_deploy.errors import BadNetwork
from lorita_deploy.networks import evaluating
from lorita_deploy.ports import ExportJob

from .onnx_file import first_line

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

BATCH = "batch"
"""Name of the symbolic dimension of artifacts with a dynamic batch."""
SIZE_LIMIT = 2**31 - 2**20
"""A protobuf message ends at 2 GiB; a little is left for the graph itself."""
FIRST_EXPORT_OPSET = 18
"""``torch.export`` programs are written at 18; older opsets would need a conversion that may fail silently."""


def trace(job: ExportJob) -> onnx.ModelProto:
    """The network as ONNX at the asked opset and batch, with the output shapes that the network really gave.

    Raises `BadNetwork` when the forward pass or every way of tracing fails, or when the weights exceed 2 GB.
    """
    import torch

    network = job.network
    if network is None:
        raise BadNetwork("the exporter onnx starts from a network, and was given none", where=job.filename)
    name = type(network).__name__
    _refuse_large(network, name)
    # Two examples with a dynamic batch: a batch of one can be mistaken for a dimension that broadcasts.
    batch = 2 if job.dynamic_batch else job.batch
    examples = repeat(job.examples, batch)
    with evaluating(network), torch.no_grad():
        outputs = _forward(network, examples, name)
        if len(outputs) != len(job.output_names):
            raise BadNetwork(
                f"the network gives {len(outputs)} outputs, {len(job.output_names)} are named: {', '.join(job.output_names)}",
                where=name,
                fix="name every output (output_names), or return only those that are needed",
            )
        model = _first_that_works(job, network, examples, name)
    _fix_shapes(model.graph.input, examples, batch if job.dynamic_batch else None)
    _fix_shapes(model.graph.output, outputs, batch if job.dynamic_batch else None)
    return model


def repeat(examples: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
    """The first example of each input ``batch`` times over."""
    return tuple(example[:1].detach().cpu().repeat(batch, *[1] * (example.dim() - 1)).contiguous() for example in examples)


def _refuse_large(network: nn.Module, name: str) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size > SIZE_LIMIT:
        raise BadNetwork(
            f"the weights take {size / 1e9:.1f} GB; an ONNX file holds at most 2 GB",
            where=name,
            fix="compress the network further, or split it",
        )


def _forward(network: nn.Module, examples: Sequence[Tensor], name: str) -> list[Tensor]:
    try:
        return list(_flatten(network(*examples)))
    except Exception as error:
        raise BadNetwork(
            f"the forward pass fails on inputs of shape {[tuple(example.shape) for example in examples]}: {first_line(error)}",
            where=name,
            fix="give the input size that the network expects (--input-size)",
        ) from error


def _flatten(outputs: Any) -> Iterator[Tensor]:
    import torch

    if isinstance(outputs, torch.Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _flatten(value)
    elif isinstance(outputs, tuple | list):
        for value in outputs:
            yield from _flatten(value)
    elif outputs is not None:
        raise TypeError(f"an output is a {type(outputs).__name__}, not a tensor")


def _first_that_works(job: ExportJob, network: nn.Module, examples: tuple[Tensor, ...], name: str) -> onnx.ModelProto:
    failures = []
    ways: list[tuple[str, Callable[..., onnx.ModelProto]]] = [("torch.jit.trace", _through_trace)]
    if job.opset >= FIRST_EXPORT_OPSET and find_spec("onnxscript"):
        ways.append(("torch.export", _through_export))
    for way, write in ways:
        try:
            with _quiet(job.opset):
                return write(job, network, examples)
        except Exception as error:
            failures.append((way, error))
    fix = "replace what is named above by operations ONNX has"
    if job.opset < FIRST_EXPORT_OPSET:
        fix += f", or take a target with opset {FIRST_EXPORT_OPSET} or newer, where torch.export is tried too"
    elif not find_spec("onnxscript"):
        fix += ", or pip install onnxscript, with which torch.export is tried too"
    raise BadNetwork(
        f"cannot be written as ONNX opset {job.opset}: " + "; ".join(f"{way}: {first_line(error)}" for way, error in failures),
        where=name,
        fix=fix,
    ) from failures[0][1]


def _through_trace(job: ExportJob, network: nn.Module, examples: tuple[Tensor, ...]) -> onnx.ModelProto:
    import onnx
    import torch

    content: Any = io.BytesIO()
    torch.onnx.export(
        network,
        examples,
        content,
        dynamo=False,
        opset_version=job.opset,
        # Together these leave weights as they are and BN as nodes, so that the folding is ours and keeps the names.
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        input_names=list(job.input_names),
        output_names=list(job.output_names),
        dynamic_axes={name: {0: BATCH} for name in (*job.input_names, *job.output_names)} if job.dynamic_batch else None,
    )
    return onnx.load_from_string(content.getvalue())


def _through_export(job: ExportJob, network: nn.Module, examples: tuple[Tensor, ...]) -> onnx.ModelProto:
    import onnx.inliner
    import torch

    batch = torch.export.Dim(BATCH)
    program = torch.onnx.export(
        network,
        examples,
        dynamo=True,
        verbose=False,
        opset_version=job.opset,
        optimize=False,
        external_data=False,
        input_names=list(job.input_names),
        output_names=list(job.output_names),
        dynamic_shapes=tuple({0: batch} for _ in examples) if job.dynamic_batch else None,
    )
    assert program is not None
    return onnx.inliner.inline_local_functions(program.model_proto)


@contextmanager
def _quiet(opset: int) -> Iterator[None]:
    """No warnings about what we ask for on purpose; attention as plain operations where the opset asks for it."""
    import torch

    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        # The fused encoder layer of evaluation mode has no counterpart in ONNX.
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        if opset < 14:  # torch.jit.trace has no rule for scaled_dot_product_attention below
            functional: Any = torch.nn.functional
            stack.callback(setattr, functional, "scaled_dot_product_attention", functional.scaled_dot_product_attention)
            functional.scaled_dot_product_attention = _plain_attention
        yield


def _plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k^T / sqrt(width) + mask) v, the definition of ``scaled_dot_product_attention`` in evaluation mode."""
    import torch

    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(int(query.size(-1))) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(int(query.size(-2)), int(key.size(-2)), dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ value


def _fix_shapes(values: Any, tensors: Sequence[Tensor], dynamic_batch: int | None) -> None:
    """State the shapes that were seen; a leading dimension equal to ``dynamic_batch`` is the symbolic batch."""
    for value, tensor in zip(values, tensors, strict=True):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for axis, extent in enumerate(tensor.shape):
            if axis == 0 and extent == dynamic_batch:
                shape.dim.add().dim_param = BATCH
            else:
                shape.dim.add().dim_value = extent
