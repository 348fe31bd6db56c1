"""A base model with a fresh LoRA adapter, on its device, or one line that says why not.

It refuses what would train on something else than was asked for: weights that are missing, a
tokenizer of another model, layers that are not there, a device that torch cannot use. How the
adapter is trained is `training`'s affair.
"""

import gc
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from green_tune import attention, lora, peers, recipe, sharding
from green_tune.errors import ConfigError, HardwareMismatch, ModelError, OutOfMemory
from green_tune.hardware import Device, can_run
from green_tune.job import Job
from green_tune.models import Source
from green_tune.predictor import is_out_of_memory

PLACES = {  # by the names of LLaMA, Mistral, Gemma, Qwen; of Phi, OPT, Falcon; of GPT-2
    "attention": (
        "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "dense", "query_key_value",
        "c_attn",
    ),
    "mlp": ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "c_fc"),
}  # fmt: skip
EACH_ITS_OWN = ("model", "data", "gpu", "country", "pue", "resume", "checkpoint_minutes")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Base:
    """A frozen base model on its device and its tokenizer, for one adapter after the other.

    With `sketched` layers it is a sketch: so many layers with random weights, of which nothing is
    read. It takes as long for a token as so many layers of the real one, and knows nothing.

    Raises:
        ConfigError: the processes that train together differ in what was asked.
        HardwareMismatch: this torch cannot use the device.
        ModelError: the base model cannot be loaded.
        OutOfMemory: it does not fit.
    """

    def __init__(self, job: Job, sketched: int = 0) -> None:
        device = _open(job)
        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        attention.register()
        peers.meet(job.rank, device)
        _check_agreed(job)
        self._made_for = _made_for(job)
        self._adapted: PeftModel | None = None
        with named_out_of_memory(job):
            self.model, self.tokenizer = (
                _sketch(job, device, sketched) if sketched else _load_base(job, device)
            )
            peers.from_everywhere(None)  # here they wait with patience
            self.model.requires_grad_(False)
            _speed_up(job, self.model)
            if job.plan.shards > 1:
                sharding.divide(self.model, _layers(self.model), job.plan.shards, device)
            elif job.plan.quantization == "none":
                self.model.to(device)

    def serves(self, job: Job) -> bool:
        """Whether this is the base model that the job asks for, in the form that it asks for."""
        return self._made_for == _made_for(job)

    def with_adapter(self, job: Job) -> PeftModel:
        """The base model with a fresh adapter, in the place of the one before.

        Raises:
            ModelError: the base model cannot take the adapter.
            OutOfMemory: it does not fit.
        """
        self._free()
        transformers.set_seed(job.config.seed)  # before the adapter: half of it is random
        with named_out_of_memory(job):
            model: PeftModel = _adapted(job, self.model)
            if job.plan.shards > 1:
                peers.same_as_first([p.data for p in model.parameters() if p.requires_grad])
            self._adapted = model
            lora.fuse(model)
            if job.plan.checkpointing:
                self.model.activation_checkpointing_enable({"use_reentrant": False})
                # It lets the embeddings want a gradient, which only reentrant checkpoints need: the
                # way back would go on below the lowest adapter, for nothing, in later trials too.
                self.model.disable_input_require_grads()
        return model

    def _free(self) -> None:
        """Takes the adapter off again; the layers below it are the very same objects as before."""
        if self._adapted is None:
            return
        self._adapted.unload()
        self._adapted = None
        self.model.activation_checkpointing_disable()  # peft would prepare the next one for it
        _tidy()


def _made_for(job: Job) -> tuple[object, ...]:
    plan = job.plan
    made = (plan.precision, plan.quantization, plan.attention, plan.kernels, plan.compile)
    return (job.source, job.commit, job.devices, job.rank, plan.shards, *made)


def _check_agreed(job: Job) -> None:
    """Processes with other options would train what no run says, or wait for one another for ever.

    Raises:
        ConfigError: they differ in what all must have alike.
    """
    found = peers.from_everywhere(_alike(job))
    for name in found[0]:
        if len(texts := list(dict.fromkeys(each[name] for each in found))) > 1:
            raise ConfigError(
                f"the processes that train together differ in {name}: {' and '.join(texts)}; "
                "start all of them with the same options and data, on alike devices"
            )


def _alike(job: Job) -> dict[str, str]:
    """What is the same in all processes of one training; paths and countries may differ."""
    params = {k: v for k, v in job.config.to_params().items() if k not in EACH_ITS_OWN}
    plan = job.plan.to_params()
    made = {name: plan[f"plan.{name}"] for name in ("precision", "quantization", "shards")}
    planned = {f"plan.{name}": text for name, text in made.items()}
    return params | planned | {"commit": str(job.commit), "the data's digest": job.data.digest}


def precision_of(job: Job) -> torch.autocast:
    """A block that computes in the precision of the plan, as training steps do."""
    name = job.plan.precision
    return torch.autocast(job.device.kind, DTYPES[name], enabled=name != "fp32")


def without_gradients(job: Job) -> AbstractContextManager[Any]:
    """A block in which nothing is kept to go backward."""
    # FSDP2 keeps tensors from pass to pass; made in inference mode, training could not use them.
    return torch.no_grad() if job.plan.shards > 1 else torch.inference_mode()


def _open(job: Job) -> torch.device:
    """The torch device, with every GPU hidden from torch that is not asked for."""
    device = job.device
    if device.kind == "cpu":
        # Numbers below 1e-38 take a CPU many times as long, and trained attention is full of them:
        # 2 to 35 % of the steps of stories260K (benchmarks/subnormals.py). Must come before torch
        # starts its threads.
        torch.set_flush_denormal(True)
        return torch.device("cpu")
    uuids = [gpu.uuid for gpu in job.devices]  # the numbers of NVML and CUDA may differ
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
    if why := _unusable(device):
        raise HardwareMismatch(f"torch {torch.__version__} cannot use {device.name}: {why}")
    _check_same(device, job.rank.local)
    _tidy()
    return torch.device("cuda", job.rank.local)


def _unusable(device: Device) -> str:
    """Why torch cannot compute on a GPU, and what would mend that; empty where it can."""
    if not torch.version.cuda:
        return "install a CUDA build of torch, or train on the CPU with gpu=cpu"
    if not torch.cuda.is_available():
        return f"the driver must serve CUDA {torch.version.cuda}; update it, or gpu=cpu"
    if not can_run(torch.cuda.get_arch_list(), device.capability):
        capability = ".".join(map(str, device.capability))
        return f"it has no kernels for capability {capability}; take another GPU, or gpu=cpu"
    return ""


def _tidy() -> None:
    """Frees what the training before has left on a GPU, which is caught in reference cycles.

    A CPU's memory can wait for Python to find them: looking takes as long as a small step.
    """
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _check_same(device: Device, index: int) -> None:
    """The GPU that torch uses must be the one that is measured."""
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    if uuid.removeprefix("GPU-") != device.uuid.removeprefix("GPU-"):
        raise HardwareMismatch(
            f"torch uses another GPU ({uuid}) than the one that is measured ({device.uuid}): set "
            f"CUDA_VISIBLE_DEVICES={device.uuid} before the start"
        )


def open_tokenizer(source: Source, commit: str) -> Any:
    """The tokenizer of a base model.

    Raises:
        ModelError: it cannot be had.
    """
    place, revision = _where(source, commit)
    with _named(source):
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, **revision)


def _where(source: Source, commit: str) -> tuple[str, dict[str, str]]:
    place = str(recipe.folder_of(source) or source.place)
    return place, {"revision": commit} if commit else {}


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """One line for what goes wrong: broken folders fail in as many ways as there are formats."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0]
        if isinstance(error, KeyError) and error.args[0] in attention.NAMES.values():
            reason = "its attention cannot be exchanged; take another base model"
        raise ModelError(f"model {source.name} cannot be loaded: {reason}") from error


def _sketch(job: Job, device: torch.device, layers: int) -> tuple[Any, Any]:
    place, revision = _where(job.source, job.commit)
    tokenizer = open_tokenizer(job.source, job.commit)
    with _named(job.source), device:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False, **revision)
        config.num_hidden_layers = layers
        return _made(job, config), tokenizer


def _made(job: Job, config: Any) -> Any:
    """A model with the weights that it is born with."""
    made: Any = AutoModelForCausalLM
    return made.from_config(
        config,
        dtype=DTYPES[job.plan.precision],
        attn_implementation=attention.NAMES[job.plan.attention],
        trust_remote_code=False,
    )


def _hull(job: Job) -> Any:
    """The base model before its weights are there: memory that nobody has written to takes none."""
    place, revision = _where(job.source, job.commit)
    with _named(job.source), no_init_weights():
        config = AutoConfig.from_pretrained(place, trust_remote_code=False, **revision)
        model = _made(job, config)
        model.tie_weights()
        return model.eval()


def _load_base(job: Job, device: torch.device) -> tuple[Any, Any]:
    place, revision = _where(job.source, job.commit)
    tokenizer = open_tokenizer(job.source, job.commit)
    if job.plan.shards > 1 and not job.rank.writes:
        return _hull(job), tokenizer
    with _named(job.source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=DTYPES[job.plan.precision],
            attn_implementation=attention.NAMES[job.plan.attention],
            output_loading_info=True,
            use_safetensors=True,  # other formats can run code when they are read
            trust_remote_code=False,
            **_quantized(job, device),
            **revision,
        )
    base, report = loaded
    _check_whole(job, base, tokenizer, report)
    return base, tokenizer


def _quantized(job: Job, device: torch.device) -> dict[str, Any]:
    """The base in 4 bits, as QLoRA does it (arXiv 2305.14314): nf4 with quantised constants."""
    if job.plan.quantization == "none":
        return {}
    return {
        "device_map": {"": device},
        "quantization_config": BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPES[job.plan.precision],
        ),
    }


def _speed_up(job: Job, base: Any) -> None:
    """What the plan asks for beside the adapter."""
    if job.plan.kernels == "liger":
        _use_liger(base)
    if job.plan.compile:
        for layer in _layers(base):
            layer.compile(dynamic=True)


def _use_liger(base: Any) -> None:
    """Liger's fused layers; the loss is our own, which needs no kernel."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(
        model=base, cross_entropy=False, fused_linear_cross_entropy=False
    )


def _layers(base: Any) -> list[Any]:
    """The decoder's layers, from the bottom: the outermost list of modules.

    One further inside, such as a layer's experts, may be longer.
    """
    lists = (m for m in base.modules() if isinstance(m, torch.nn.ModuleList))
    return list(next(lists, []))


def _check_whole(job: Job, base: Any, tokenizer: Any, report: Any) -> None:
    """Refuses what would train on weights that are not there: transformers fills them by chance."""
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"model {job.source.name} lacks {len(missing)} weights, such as {missing[0]}"
        )
    rows = base.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ModelError(
            f"model {job.source.name} has embeddings for {rows} tokens, and its tokenizer makes "
            f"{len(tokenizer)}: they do not belong together"
        )


def _adapted(job: Job, base: Any) -> Any:
    config = job.config
    targets = _targets(job, base)
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        target_modules=targets,
        layers_to_transform=_top_layers(job, base),
    )
    try:
        with warnings.catch_warnings():  # GPT-2's layers are stored transposed; peft sees it itself
            warnings.filterwarnings("ignore", message="fan_in_fan_out")
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
            return get_peft_model(base, adapter)
    except ValueError as error:
        raise ModelError(f"{job.source.name} cannot take an adapter: {error}") from None


def _targets(job: Job, base: Any) -> str | list[str]:
    """The layers to adapt; each must be there, as peft passes over those that are not."""
    asked = job.config.lora_targets
    there = _linear_names(base)
    if asked.lower() == "all-linear":
        return there if job.config.lora_layers else "all-linear"
    if asked.lower() in PLACES:
        names = [name for name in there if name in PLACES[asked.lower()]]
        return names or _no_layer(job, asked, there)
    adaptable = torch.nn.Linear | torch.nn.Embedding | Conv1D
    every = {n.rpartition(".")[2] for n, m in base.named_modules() if isinstance(m, adaptable)}
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in every:
            return _no_layer(job, repr(name), there)
    return names


def _linear_names(base: Any) -> list[str]:
    """The names of the linear layers inside of the decoder's layers."""
    linear = {
        name.rpartition(".")[2]
        for layer in _layers(base)
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    return sorted(linear)


def _no_layer(job: Job, what: str, there: Sequence[str]) -> list[str]:
    raise ModelError(
        f"lora_targets={job.config.lora_targets}: {job.source.name} has no layer {what}; it has "
        f"{', '.join(there)}, or take all-linear"
    )


def _top_layers(job: Job, base: Any) -> list[int] | None:
    """The numbers of the layers to adapt; below the lowest of them nothing goes backward."""
    if not (asked := job.config.lora_layers):
        return None
    layers = len(_layers(base))
    if asked > layers:
        raise ModelError(f"lora_layers={asked}: {job.source.name} has {layers}")
    return list(range(layers - asked, layers))


@contextmanager
def named_out_of_memory(job: Job) -> Iterator[None]:
    """Gives an out-of-memory its own name, with what would help."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"{job.source.name} does not fit into {job.device} with micro_batch_tokens="
            f"{job.plan.micro_batch_tokens}, max_seq_len={job.config.max_seq_len}: lower one of "
            "them, or set gradient_checkpointing=true"
        ) from error
