"""A simulated CUDA device, so that device bugs show without a GPU.

Tensors stay ordinary CPU tensors. A set of storages says which of them are on the
simulated GPU; two modes of PyTorch keep it and raise CUDA's errors:

* a `TorchDispatchMode` sees every operator, also those of the backward pass: it
  refuses a mixture of devices, and what an operator returns for tensors on the GPU is
  there too;
* a `TorchFunctionMode` sees what names a device: ``.to``, ``.cuda``, ``.device``,
  factories with ``device=``, ``.numpy()``.

What cannot be simulated: kernels, their speed, memory that runs out. Two properties
of a GPU can be added, because checks that compare numbers depend on them: `tf32`
rounds what convolutions read, and `noise` makes two runs of one computation differ in
their last bits, as kernels do that sum in no fixed order.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from importlib import import_module
from types import SimpleNamespace
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")

aten = torch.ops.aten
CROSSING = {aten.copy_.default, aten._to_copy.default}
"""Operators that may read one device and write another."""

INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default,
}
"""Operators whose indices may be on the CPU when the tensor is on the GPU."""

STRICT = ("cat", "stack", "convolution", "mm", "addmm", "bmm", "native_batch_norm")
"""Operators that do not even take a number (0-dim) from the CPU."""

LIKE = {
    *(torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like),
    *(torch.rand_like, torch.randn_like, torch.randint_like),
    *(Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full),
    *(Tensor.new_tensor, Tensor.new_empty_strided),
}
"""Functions whose result is where their argument is."""

ON_CPU = {torch.from_numpy, torch.frombuffer}

READS = {Tensor.numpy, Tensor.__array__}
"""What passes the memory of a tensor to NumPy, which knows no GPU."""


class Storages:
    """A set of storages that does not keep them alive."""

    def __init__(self) -> None:
        self.found: dict[int, StorageWeakRef] = {}
        self.limit = 1024

    def add(self, tensor: Tensor) -> None:
        if len(self.found) >= self.limit:  # else addresses of the dead pile up
            alive = {k: r for k, r in self.found.items() if not r.expired()}
            self.found, self.limit = alive, 2 * len(alive) + 1024
        ref = StorageWeakRef(tensor.untyped_storage())
        # holding the reference keeps the address from being used again
        self.found[ref.cdata] = ref

    def discard(self, tensor: Tensor) -> None:
        self.found.pop(tensor.untyped_storage()._cdata, None)

    def __contains__(self, tensor: Tensor) -> bool:
        if not self.found or tensor.layout != torch.strided:
            return False
        ref = self.found.get(_address(tensor))
        return ref is not None and not ref.expired()


def _address(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # a wrapper without memory
        return None


class _Moves(TorchFunctionMode):
    """Lets the code under test name the simulated device."""

    def __init__(self, gpu: "SimulatedCuda") -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        gpu, first = self.gpu, args[0] if args else None
        on_gpu = isinstance(first, Tensor) and first in gpu.storages
        name = getattr(func, "__name__", "")
        if name == "__get__" and on_gpu:
            what = getattr(func.__self__, "__name__", "")
            if what == "device":
                return CUDA
            if what in ("is_cuda", "is_cpu"):
                return what == "is_cuda"
        if func in READS and on_gpu:
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to "
                "copy the tensor to host memory first."
            )
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return self._move(func, args, kwargs)
        if func is Tensor.get_device:
            return 0 if on_gpu else -1
        if func is Tensor.pin_memory:
            if on_gpu:
                raise RuntimeError("cannot pin 'torch.cuda.FloatTensor': only CPU")
            return first.clone()
        if func is Tensor.__deepcopy__:
            twin = func(*args, **kwargs)  # copies the memory without an operator
            if on_gpu:
                gpu.storages.add(twin)
            return twin
        gpu.check_generator(kwargs.get("generator"), kwargs.get("device"), first)
        if "device" in kwargs:
            return self._make(func, args, kwargs)
        made = func(*args, **kwargs)
        if on_gpu and func in LIKE:
            gpu.storages.add(made)
        return made

    def _make(self, func, args, kwargs):
        """Call a factory with ``device=``, without the simulated device."""
        gpu, wanted = self.gpu, kwargs["device"]
        wanted = gpu.named(wanted)
        if wanted is None or wanted.type == "meta":
            return func(*args, **kwargs)
        kwargs["device"] = CPU
        given = args[0] if args and isinstance(args[0], Tensor) else None
        made = func(*args, **kwargs)
        if not isinstance(made, Tensor):
            return made
        if given is not None and made.untyped_storage()._cdata == _address(given):
            if (given in gpu.storages) == (wanted.type == "cuda"):
                return made  # torch.as_tensor of a tensor that is there already
            made = made.clone()
        gpu.place(made, wanted)
        return made

    def _move(self, func, args, kwargs):
        gpu, (tensor, *rest) = self.gpu, args
        copy = kwargs.pop("copy", False)
        if func is Tensor.cpu:
            rest = ["cpu", *rest]
        if func is Tensor.cuda:
            kwargs.setdefault("device", rest.pop(0) if rest else None)
            kwargs["device"] = gpu.named(kwargs["device"]) or CUDA
        here = CUDA if tensor in gpu.storages else tensor.device
        if rest and isinstance(rest[0], Tensor):  # .to(other)
            other = rest[0]
            rest[0] = CUDA if other in gpu.storages else other.device
            kwargs["dtype"] = other.dtype
        wanted, dtype, _, layout = torch._C._nn._parse_to(*rest, **kwargs)
        wanted = gpu.named(wanted) or here
        new = {"dtype": dtype or tensor.dtype, "copy": copy}
        new["memory_format"] = layout or torch.preserve_format
        if "meta" in (wanted.type, here.type):
            return tensor.to(device=wanted, **new)
        if wanted.type == here.type:
            return tensor.to(**new)
        with gpu.crossing():
            made = tensor.to(**new | {"copy": True})
        gpu.place(made, wanted)
        return made


class _Operators(TorchDispatchMode):
    """Refuses mixtures of devices, and notes where results are."""

    def __init__(self, gpu: "SimulatedCuda") -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        gpu = self.gpu
        if torch.is_inference_mode_enabled():  # where operators come whole: conv2d, to
            key, name = torch._C.DispatchKey.CompositeImplicitAutograd, func.name()
            known = torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
            if known and key not in func.py_kernels:
                with self:
                    return func._op_dk(key, *args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_gpu = [x in gpu.storages for x in given]
        if not any(on_gpu):
            return func(*args, **kwargs)
        if os.getpid() != gpu.process:
            raise RuntimeError(
                "Cannot re-initialize CUDA in forked subprocess. To use CUDA with "
                "multiprocessing, you must use the 'spawn' start method"
            )
        if gpu.capability < (7, 0):
            raise RuntimeError(
                "CUDA error: no kernel image is available for execution on the device"
            )
        if func in CROSSING or gpu.moving:
            made = func(*args, **kwargs)
            if func is aten._to_copy.default:
                self._note(made)
            return made
        self._check(func, args, kwargs, given, on_gpu)
        args, kwargs = self._as_read(func, args, kwargs)
        made = func(*args, **kwargs)
        self._note(made)
        return self._as_written(func, made)

    def _note(self, made) -> None:
        for x in tree_leaves(made):
            if isinstance(x, Tensor):
                self.gpu.storages.add(x)

    def _check(self, func, args, kwargs, given, on_gpu) -> None:
        name = func._schema.name.removeprefix("aten::")
        strangers = [
            x for x, there in zip(given, on_gpu, strict=True) if not there and x.numel()
        ]
        if not strangers:
            return
        if func in INDEXING and args[0] in self.gpu.storages:
            indices = [x for x in args[1] if x is not None]
            strangers = [x for x in strangers if all(x is not i for i in indices)]
        if name.split(".")[0] not in STRICT and not name.startswith("_foreach"):
            written = [
                value
                for argument, value in zip(func._schema.arguments, args, strict=False)
                if argument.alias_info and argument.alias_info.is_write
            ]
            written += [kwargs["out"]] if isinstance(kwargs.get("out"), Tensor) else []
            strangers = [
                x for x in strangers if x.dim() or any(x is w for w in written)
            ]
        if strangers:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two "
                f"devices, cuda:0 and cpu! (when checking arguments of {func}: "
                f"{[tuple(x.shape) for x in strangers]} on the CPU)"
            )

    def _as_read(self, func, args, kwargs):
        """Round what a convolution reads to 10 bits, as tensor cores do."""
        known = (aten.convolution.default, aten.convolution_backward.default)
        if not (self.gpu.tf32 and func in known):
            return args, kwargs
        if not (torch.backends.cudnn.enabled and torch.backends.cudnn.allow_tf32):
            return args, kwargs
        count = 3 if func is known[1] else 2
        return (*(_rounded(x) for x in args[:count]), *args[count:]), kwargs

    def _as_written(self, func, made):
        """Let the last bits differ between two runs."""
        if not self.gpu.noise or torch.backends.cudnn.deterministic:
            return made
        name = func._schema.name
        if not any(part in name for part in self.gpu.noisy):
            return made
        with torch.no_grad():
            for x in tree_leaves(made):
                if isinstance(x, Tensor) and x.is_floating_point():
                    g = self.gpu.generator
                    step = torch.finfo(x.dtype).eps * self.gpu.noise
                    x.mul_(1 + step * torch.randn(x.shape, generator=g).to(x.dtype))
        return made


def _rounded(x: Tensor | None) -> Tensor | None:
    if x is None or x.dtype != torch.float32:
        return x
    bits = x.detach().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


class SimulatedCuda:
    """A simulated GPU; see `simulated`.

    Args:
        capability: Of CUDA: (7, 5) is a T4, which has no bf16; (8, 0) an A100. PyTorch
            has no kernels for a P100, which is (6, 0).
        tf32: Whether convolutions round float32, as GPUs from (8, 0) on do.
        noise: Rounding errors (in units of the last bit) by which what `noisy`
            operators return differs from run to run.
    """

    def __init__(
        self,
        capability: tuple[int, int] = (8, 0),
        tf32: bool = False,
        noise: float = 0.0,
        noisy: Iterable[str] = ("convolution_backward", "nll_loss"),
    ) -> None:
        self.capability, self.tf32, self.noise = capability, tf32, noise
        self.noisy = tuple(noisy)
        self.storages = Storages()
        self.process = os.getpid()
        self.moving = False
        self.generator = torch.Generator().manual_seed(0)
        self.synchronized = 0

    @contextlib.contextmanager
    def crossing(self) -> Iterator[None]:
        """Let an operator read one device and write the other."""
        self.moving, before = True, self.moving
        try:
            yield
        finally:
            self.moving = before

    def named(self, device) -> torch.device | None:
        """Return the device with a name, None for no name."""
        if device is None:
            return None
        device = torch.device("cuda", device) if type(device) is int else device
        device = torch.device(device)
        if device.type == "cuda" and (device.index or 0) != 0:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return device

    def place(self, tensor: Tensor, device: torch.device) -> None:
        """Note where a tensor is that no one else holds."""
        if device.type == "cuda":
            if os.getpid() != self.process:
                raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.")
            self.storages.add(tensor)
        else:
            self.storages.discard(tensor)

    def check_generator(self, generator, device, first) -> None:
        """Raise an error when random numbers are drawn for another device."""
        if generator is None:
            return
        device = self.named(device) or CPU
        if isinstance(first, Tensor) and first in self.storages:
            device = CUDA
        theirs = getattr(generator, "simulated", CPU)
        if theirs.type != device.type:
            raise RuntimeError(
                f"Expected a '{device.type}' device type for generator but found "
                f"'{theirs.type}'"
            )

    def properties(self, *_) -> SimpleNamespace:
        """Return what torch.cuda.get_device_properties does."""
        major, minor = self.capability
        name = "Simulated GPU"
        found = {"name": name, "total_memory": 15 * 2**30, "multi_processor_count": 40}
        return SimpleNamespace(major=major, minor=minor, **found)

    def pinned(self, data, *_):
        """Check what a loader would copy to pinned memory, and return it as it is."""
        for x in tree_leaves(data):
            if isinstance(x, Tensor) and x in self.storages:
                raise RuntimeError("cannot pin 'torch.cuda.FloatTensor': only CPU")
        return data

    def synchronize(self, *_) -> None:
        """Count the waits for the device."""
        self.synchronized += 1


class _Generator(torch.Generator):
    """A generator that says it is on the simulated GPU."""

    simulated = CPU

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu")
        made.simulated = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return CUDA if self.simulated.type == "cuda" else CPU


def _grouped(gpu: SimulatedCuda):
    """Optimizers group parameters in C++, which knows the real device."""
    from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype as group

    def grouped(lists, with_indices=False):
        groups = {}
        for (device, dtype), value in group(lists, with_indices).items():
            some = next(x for x in value[0][0] if x is not None)
            groups[CUDA if some in gpu.storages else device, dtype] = value
        return groups

    return grouped


def _autocast_on_cpu(init):
    """Autocasting follows the real device of tensors, which is the CPU."""

    def __init__(self, device_type, *args, **kwargs):
        init(self, device_type, *args, **kwargs)
        self.device = "cpu" if device_type == "cuda" else device_type

    return __init__


@contextlib.contextmanager
def _tagged(gpu: SimulatedCuda) -> Iterator[None]:
    """Let torch.save note the simulated device, and torch.load go back to it."""
    registry = torch.serialization._package_registry

    def tag(storage):
        there = gpu.storages.found.get(storage._cdata)
        return "cuda:0" if there is not None and not there.expired() else None

    def restore(storage, location):
        if not location.startswith("cuda"):
            return None
        ref = StorageWeakRef(storage)
        gpu.storages.found[ref.cdata] = ref
        return storage

    kept = list(registry)
    torch.serialization.register_package(5, tag, restore)
    try:
        yield
    finally:
        registry[:] = kept


@contextlib.contextmanager
def _forgotten() -> Iterator[None]:
    """Let accelerate look for the device anew: it keeps what a process first found."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@contextlib.contextmanager
def simulated(gpu: SimulatedCuda | None = None) -> Iterator[SimulatedCuda]:
    """Simulate that this machine has one CUDA device.

    Args:
        gpu: What it is like; without it, one of capability 8.0.
    """
    gpu = gpu or SimulatedCuda()
    state = torch.zeros(16, dtype=torch.uint8)
    answers = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *a, **k: gpu.capability[0] >= 8,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: gpu.named(device),
        "synchronize": gpu.synchronize,
        "get_device_name": lambda *a, **k: "Simulated GPU",
        "get_device_capability": lambda *a, **k: gpu.capability,
        "get_arch_list": lambda: ["sm_70", "sm_75", "sm_80", "sm_90", "compute_120"],
        "get_device_properties": gpu.properties,
        "mem_get_info": lambda *a, **k: (14 * 2**30, 15 * 2**30),
        "memory_allocated": lambda *a, **k: 2**20,
        "max_memory_allocated": lambda *a, **k: 2**20,
        "memory_reserved": lambda *a, **k: 2**20,
        "max_memory_reserved": lambda *a, **k: 2**20,
        "reset_peak_memory_stats": lambda *a, **k: None,
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "is_current_stream_capturing": lambda: False,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda *a, **k: state.clone(),
        "get_rng_state_all": lambda: [state.clone()],
        "set_rng_state": lambda new, *a: None,
        "set_rng_state_all": lambda new: None,
        "_lazy_init": lambda: None,
    }
    autocast = torch.amp.autocast_mode.autocast
    with contextlib.ExitStack() as stack:
        put = stack.enter_context
        for name, answer in answers.items():
            put(mock.patch.object(torch.cuda, name, answer))
        loading = torch.utils.data._utils.pin_memory
        put(mock.patch.object(loading, "pin_memory", gpu.pinned))
        stream = SimpleNamespace(is_capturing=lambda: False)
        for name, answer in (
            ("is_available", lambda *a, **k: True),
            ("current_accelerator", lambda *a, **k: torch.device("cuda")),
            ("current_device_index", lambda *a, **k: 0),
            ("set_device_index", lambda *a, **k: None),
            ("current_stream", lambda *a, **k: stream),
        ):
            put(mock.patch.object(torch.accelerator, name, answer))
        put(mock.patch.object(torch, "Generator", _Generator))
        put(
            mock.patch.object(autocast, "__init__", _autocast_on_cpu(autocast.__init__))
        )
        for module in (
            "torch.optim.optimizer",
            "torch.optim.swa_utils",
            "torch.nn.utils.clip_grad",
        ):
            name = "_group_tensors_by_device_and_dtype"
            put(mock.patch.object(import_module(module), name, _grouped(gpu)))
        # the profiler saw no kernels: an operator's time stands for theirs
        from torch.autograd import profiler_util

        event = profiler_util.FunctionEventAvg
        clock = property(lambda x: x.self_cpu_time_total, lambda x, value: None)
        put(mock.patch.object(event, "self_device_time_total", clock, create=True))
        put(_tagged(gpu))
        put(_forgotten())
        put(_Operators(gpu))
        put(_Moves(gpu))
        yield gpu
