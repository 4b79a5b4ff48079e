"""The blocks that all recipes share. A field's description is its help text and its line on the reference page."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from qvl_core.recipe.sources import parse_sources


class Block(BaseModel):
    """A recipe block: unknown keys are errors, values are converted to the declared type."""

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True, use_attribute_docstrings=True)


class Quantization(Block):
    """Frozen weights in fewer bits, under adapters (QLoRA: Dettmers et al. 2023, arXiv:2305.14314)."""

    kind: Literal["nf4", "int8"]
    """nf4: 4 bits (bitsandbytes), on CPU and GPU; int8: 8 bits, weights only (torchao)."""
    groups: list[str] = ["llm"]
    """Module groups whose linear layers are held so; the vision tower and the head suffer most and are left out."""
    double: bool = True
    """nf4: hold the scales of the blocks in 8 bits as well."""


def as_quantization(value: Any) -> Any:
    """A kind alone stands for a block."""
    return {"kind": value} if isinstance(value, str) else value


class Model(Block):
    """Which Qwen3-VL to train, and how to hold it."""

    name: str
    """Hub id, local folder, or `tiny` (a small random Qwen3-VL built on the spot)."""
    revision: str | None = None
    """Hub revision (branch, tag or commit); the commit that was loaded is recorded in environment.json."""
    attention: Literal["auto", "packed", "flash", "sdpa", "eager"] = "auto"
    """auto takes packed: torch's varlen kernels on a GPU, SDPA by document elsewhere. flash: FlashAttention 4 or 3."""
    quantization: Annotated[
        Quantization | None, BeforeValidator(as_quantization, json_schema_input_type=Quantization | str | None)
    ] = None
    """Hold the frozen language model in fewer bits: `nf4`, `int8`, or a block."""
    init_from: str | None = None
    """Folder whose weights are loaded before step 1 (weights only: to continue a run use --resume)."""


class Group(Block):
    """What happens to one named group of modules."""

    mode: Literal["frozen", "lora", "full"] = "frozen"
    """`frozen`: not trained; `lora`: low-rank adapters on its linear layers; `full`: every weight trained."""
    rank: Annotated[int, Field(ge=1)] = 16
    """LoRA rank."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """LoRA scale numerator: the update is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the LoRA input; the same for all LoRA groups of a recipe."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732); the same for all LoRA groups of a recipe."""
    dora: bool = False
    """Learn the length of each output row apart (DoRA, arXiv:2402.09353); the same for all LoRA groups of a recipe."""
    init: Literal["zero", "pissa", "loftq"] = "zero"
    """First values: no change, the main directions (arXiv:2404.02948), or what nf4 loses (arXiv:2310.08659)."""
    plus: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of LoRA's B as a multiple of A's (LoRA+, arXiv:2402.12354, proposes 16)."""
    layers: Annotated[int, Field(ge=1)] | None = None
    """Train only the last so many layers of the group (`llm`, `vision`); default: all."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of this group; default: optim.lr."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay of this group; default: optim.weight_decay (never on norms, biases, embeddings)."""


class Augment(Block):
    """Random changes of the pictures of a sample: all its pictures alike, its boxes with them, answers kept true."""

    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Smallest part of the area that a random crop keeps (its shape stays); 1 crops nothing."""
    resize: tuple[Annotated[float, Field(ge=0.1)], Annotated[float, Field(le=4)]] = (1.0, 1.0)
    """Smallest and largest factor on width and height."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How often a sample is mirrored left to right; writing in the pictures is mirrored too."""
    flip_sides: bool = False
    """Mirror samples whose text speaks of left or right as well, although their text is not changed."""
    shift: Annotated[int, Field(ge=0)] = 0
    """Move the pictures by up to this many pixels both ways; uncovered edges repeat the border."""
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Brightness is multiplied by a factor from 1 - this to 1 + this."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Contrast (distance from mid-grey) is multiplied by a factor from 1 - this to 1 + this."""
    saturation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Saturation (distance from grey) is multiplied by a factor from 1 - this to 1 + this."""
    visible: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Part of each box that must stay in the picture; a crop or shift that leaves less is drawn again."""
    coordinates: bool = False
    """Change the geometry of samples whose text states coordinates as well, although their text is not changed."""

    @model_validator(mode="after")
    def _rising(self) -> "Augment":
        if self.resize[0] > self.resize[1]:
            raise ValueError("`resize` is the smallest and the largest factor; exchange them")
        return self


class Source(Block):
    """One data source of a list. As text: `digits%50`, `2*digits[train:1000,test:100]`, `a.jsonl + b.jsonl`."""

    source: str
    """Registered name, file or data set folder."""
    split: str | None = None
    """Split inside a dataset folder; default: the list's own name (train, validation, test)."""
    take: Annotated[int, Field(ge=1)] | None = None
    """Use only this many samples: a fixed random choice, the same in every run."""
    percent: Annotated[float, Field(gt=0)] | None = None
    """Use only this percentage of the samples, a fixed random choice; above 100 each sample comes again that often."""
    parts: dict[Literal["train", "validation", "test"], Annotated[int, Field(ge=1)]] | None = None
    """Samples for each list, never shared (`{train: 1000, test: 100}`): of the splits, or carved from the only one."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often each sample is seen per epoch; 0.5 is every second epoch, 2 is twice."""
    format: str | None = None
    """Sample format (qvl, openai, qwenvl); default: recognised from the first sample."""
    map: dict[str, str] | None = None
    """Columns of the data by field of the format, where they have other names (`{image: image_path}`)."""
    augment: Augment | None = None
    """What is changed at random in the pictures, from (seed, epoch, sample); evaluations are never augmented."""

    @model_validator(mode="after")
    def _one_subset(self) -> "Source":
        if self.take is not None and self.percent is not None:
            raise ValueError("`take` and `percent` exclude each other; keep one")
        if self.parts is not None and (self.take is not None or self.split is not None):
            raise ValueError("`parts` says what `take` and `split` say; keep `parts` or the others")
        if self.parts is not None and self.percent is not None and self.percent < 100:
            raise ValueError("`parts` and a `percent` below 100 exclude each other; keep one")
        return self


def _as_list(value: Any) -> Any:
    """Text, in place of the list or of entries, is taken apart into sources."""
    entries = [value] if isinstance(value, (str, dict, Source)) else value
    if not isinstance(entries, list | tuple):
        return value
    return [source for entry in entries for source in (parse_sources(entry) if isinstance(entry, str) else [entry])]


Sources = Annotated[list[Source], BeforeValidator(_as_list, json_schema_input_type=list[Source | str] | Source | str)]


class Data(Block):
    """What is learned from, and what is measured on."""

    train: Sources
    """Sources that are trained on."""
    validation: Sources = []
    """Sources for the validation loss and the metrics during training."""
    test: Sources = []
    """Sources for the final evaluation; never looked at before the end."""
    media_root: str | None = None
    """Folder that relative media paths start from; default: the folder of the data file."""
    allow_root: list[str] = []
    """Folders outside media_root from which absolute media paths may be read."""
    max_bad: Annotated[int, Field(ge=0)] = 0
    """How many bad samples may be left out (counted and listed) before the run stops."""
    train_on: Literal["all", "last", "none"] = "all"
    """Answers that are learned: all, the last of a conversation, or none but those that the data itself marks."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Worker processes that read, decode and encode ahead of the training step; default: 4 with a GPU, 0 without."""

    @model_validator(mode="after")
    def _parts_agree(self) -> "Data":
        carved: dict[str, dict[str, int]] = {}
        for source in (*self.train, *self.validation, *self.test):
            if source.parts is not None:
                parts: dict[str, int] = dict(source.parts.items())
                if carved.setdefault(source.source, parts) != parts:
                    raise ValueError(f"`parts` of {source.source} differ between two sources, which may then overlap")
        return self

    @model_validator(mode="after")
    def _evaluations_stay_as_they_are(self) -> "Data":
        if any(source.augment for source in (*self.validation, *self.test)):
            raise ValueError("`augment` belongs to `train`; evaluations are never augmented")
        return self


class Batch(Block):
    """How samples become optimizer steps."""

    size: Annotated[int, Field(ge=1)] | None = None
    """Samples per optimizer step, over all devices. Give either size or tokens."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens per optimizer step, over all devices, in packed rows of max_length. Give either size or tokens."""
    micro: Annotated[int, Field(ge=1)] | None = None
    """Samples (with size) or packed rows (with tokens) per forward on each device; default: all, or 1 row."""
    packing: bool = True
    """Lay samples end to end, each attending only to itself; false pads them."""
    group_by_length: bool = True
    """Without packing, put samples of similar length into the same forward."""
    max_length: Annotated[int, Field(ge=8)] = 4096
    """Longest sample in tokens, and the length of a packed row."""
    too_long: Literal["drop", "error", "cut"] = "error"
    """A sample over max_length is left out and counted, is an error, or loses its oldest turns (never inside media)."""

    @model_validator(mode="after")
    def _size_or_tokens(self) -> "Batch":
        if (self.size is None) == (self.tokens is None):
            raise ValueError("give exactly one of `size` and `tokens`")
        if self.tokens is not None:
            if not self.packing:
                raise ValueError("`tokens` needs `packing: true`; use `size` for padded batches")
            if self.tokens < self.max_length:
                raise ValueError(f"`tokens` ({self.tokens}) is below max_length ({self.max_length}); raise it")
        return self


class Optim(Block):
    """AdamW."""

    name: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit holds AdamW's two averages in 8 bits: a quarter of their memory."""

    lr: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate of every group that names none."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay; never applied to norms, biases and embeddings."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's exponential averages of the gradient and of its square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's term against division by zero."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of an average of the trained weights, which evaluations and final/ then use (0.999 is usual)."""


class Schedule(Block):
    """The learning rate over the run, as a factor of each group's peak."""

    name: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape after the warm-up."""
    warmup: Annotated[float, Field(ge=0)] = 0.0
    """Steps of linear warm-up; below 1: the part of all steps."""
    min_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factor that linear and cosine end at."""


class Train(Block):
    """How long, from which seed, in which precision."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps. Give steps, epochs or both: whichever ends first."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training sources."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides order, augmentation, dropout and initialisation of new weights."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Compute type; trained weights are always kept in fp32. auto: bf16 or fp16 on a GPU, fp32 on a CPU."""
    tf32: bool = True
    """Allow TF32 matrix products where fp32 is computed on a GPU."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest global gradient norm; null leaves it unclipped."""
    recompute: bool | list[Literal["llm", "vision"]] = False
    """Recompute activations in the backward pass, of all layers or of these groups: less memory, a third more time."""
    max_nonfinite: Annotated[int, Field(ge=1)] = 5
    """Steps in a row with a non-finite loss or gradient (never applied) before the run stops."""
    divergence: Annotated[float, Field(gt=1)] | None = None
    """Stop when a step's loss is over so many times its running mean; looked at when a line is logged. null: never."""

    @model_validator(mode="after")
    def _some_end(self) -> "Train":
        if self.steps is None and self.epochs is None:
            raise ValueError("give `steps`, `epochs` or both")
        return self


class Speed(Block):
    """What makes a step fast or small. None changes what is learned; each can be switched off to compare."""

    label_rows: bool = True
    """Compute logits only where a label is learned, a bounded chunk at a time."""
    fused_optimizer: bool = True
    """Update all weights in one kernel."""
    linear_patches: bool = True
    """Embed patches by a matrix product in place of the equal Conv3d, which is slow on some versions of cuDNN."""
    frozen_features: bool = True
    """Run a vision tower that is not trained without gradients, once per batch."""
    cache_features: Annotated[float, Field(gt=0)] | None = None
    """GiB of disk for the outputs of a frozen vision tower, in the run folder, so that later epochs skip it."""
    offload: bool = False
    """Keep activations in the host's pinned memory between forward and backward."""
    compile: bool = False
    """Compile each layer once (torch.compile); the first steps take minutes longer."""


class Checkpoint(Block):
    """When the state is saved."""

    every: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints; default: only at the end and when asked to stop."""
    keep: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints that are kept, beside the best one under early stopping."""


class EarlyStop(Block):
    """End the run when a figure stops improving; final/ then holds the best checkpoint."""

    metric: str = "validation_loss"
    """Figure of the evaluation that decides; of one group: `validation_exact_match/GROUP`."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether smaller or larger is better; auto: smaller for a loss, larger for all else."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Evaluations without improvement before the run ends."""

    @property
    def larger_is_better(self) -> bool:
        return self.mode == "max" or (self.mode == "auto" and not self.metric.partition("/")[0].endswith("loss"))


class Evaluate(Block):
    """What is measured during training."""

    every: Annotated[int, Field(ge=1)] | None = None
    """Steps between evaluations; default: only at the end."""
    metrics: list[str] = ["exact_match"]
    """Figures computed from greedy answers; an empty list leaves only the validation loss."""
    samples: Annotated[int, Field(ge=1)] | None = None
    """Evaluate at most this many samples of each list during training; the final evaluation takes all."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest generated answer in tokens."""
    group_by: str | None = None
    """Field of the samples (of `meta`, or beside the messages) by whose values the figures are also given apart."""
    early_stop: EarlyStop | None = None
    """Stop early on one figure."""

    @model_validator(mode="after")
    def _something_to_stop_on(self) -> "Evaluate":
        if self.early_stop is not None and self.every is None:
            raise ValueError("`early_stop` needs `every`, the steps between evaluations")
        return self


class Media(Block):
    """How pictures and clips become tokens (one token covers 32 x 32 pixels; in a clip, of two frames)."""

    max_pixels: Annotated[int, Field(ge=1024)] | None = None
    """Largest picture in pixels after resizing; default: the checkpoint's. Old multiples of 28 x 28 are converted."""
    min_pixels: Annotated[int, Field(ge=1024)] | None = None
    """Smallest picture in pixels after resizing; default: the checkpoint's. Old multiples of 28 x 28 are converted."""
    image_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of one picture; instead of max_pixels."""
    video_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of one clip, its time stamps left out; default: the checkpoint's own."""
    frame_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of the two frames that share a time stamp; default: only the whole clip is limited."""
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Frames per second that are taken of a video file; default: the checkpoint's own (2)."""
    min_frames: Annotated[int, Field(ge=2)] | None = None
    """Fewest frames that are taken of a video file that has them; default: the checkpoint's own (4)."""
    max_frames: Annotated[int, Field(ge=2)] | None = None
    """Most frames that are taken of a video file; default: the checkpoint's own (768)."""

    @model_validator(mode="after")
    def _one_budget(self) -> "Media":
        if self.max_pixels is not None and self.image_tokens is not None:
            raise ValueError("`max_pixels` and `image_tokens` say the same; keep one")
        return self


class Parallel(Block):
    """How many processes, and what each holds."""

    strategy: Literal["auto", "single", "ddp", "fsdp2", "zero1", "zero2", "zero3"] = "auto"
    """auto: single, or ddp with several processes. fsdp2 and zero1 to zero3 (DeepSpeed) shard what each holds."""
    nproc: Annotated[int, Field(ge=1)] | None = None
    """Processes per node; above 1 the command starts them itself. Asserted at start."""
    nodes: Annotated[int, Field(ge=1)] | None = None
    """Nodes that must be there; asserted at start."""

    @property
    def processes(self) -> int:
        """On all nodes together, by the recipe."""
        return (self.nproc or 1) * (self.nodes or 1)

    @property
    def planned(self) -> Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"]:
        """The strategy of so many processes."""
        if self.strategy == "auto":
            return "ddp" if self.processes > 1 else "single"
        return self.strategy


class Log(Block):
    """What is shown and written while training."""

    every: Annotated[int, Field(ge=1)] = 10
    """Steps between lines; between them nothing waits for the device."""
    to: list[Literal["tensorboard", "wandb"]] = []
    """Further places for the figures, beside metrics.jsonl and report.html."""


class Recipe(Block):
    """The common recipe. A method subclasses it and adds its own blocks."""

    indifferent: ClassVar[dict[str, Any]] = {
        **dict.fromkeys(("log", "parallel", "checkpoint", "speed"), True),
        "data": {"workers"},
        "batch": {"micro"},
        "train": {"recompute"},
    }
    """What may differ from a finished run, as pydantic's `exclude` takes it: the same would come out."""

    version: Literal[1]
    """Version of the recipe format."""
    model: Model
    tune: dict[str, Group]
    """What happens to each module group; a group not named is frozen."""
    data: Data
    batch: Batch
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    train: Train
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    media: Media = Media()
    speed: Speed = Speed()
    parallel: Parallel = Parallel()
    log: Log = Log()

    @model_validator(mode="after")
    def _cached_features_stay(self) -> "Recipe":
        if self.speed.cache_features is None:
            return self
        for name in ("vision", "merger", "deepstack_mergers"):
            if name in self.tune and self.tune[name].mode != "frozen":
                raise ValueError(
                    f"`speed.cache_features` needs a frozen tower, but `tune.{name}` trains it; remove one of the two"
                )
        if self.parallel.strategy == "zero3":
            raise ValueError(
                "`speed.cache_features` and `parallel.strategy: zero3` exclude each other: a process that skips the "
                "tower would leave the others waiting for its part of the weights; use zero2 or fsdp2"
            )
        return self

    @model_validator(mode="after")
    def _fewer_bits_stay_whole(self) -> "Recipe":
        if self.model.quantization is not None and self.parallel.strategy in ("fsdp2", "zero3"):
            raise ValueError(
                f"`model.quantization` and `parallel.strategy: {self.parallel.strategy}` exclude each other: weights "
                "in fewer bits are not sharded; use ddp or zero2"
            )
        return self
