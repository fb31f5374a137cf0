"""The rules of each resource: one table a kind, read by the models and by the CRD generator."""

from __future__ import annotations

from twinpod.api.algorithm_rules import ALGORITHM_RULES, above_zero
from twinpod.api.change_rules import JOB_CHANGES, POOL_CHANGES
from twinpod.api.engine_rules import JOB_ENGINES, POOL_ENGINES
from twinpod.api.patch_rules import JOB_PATCHES, POOL_PATCHES
from twinpod.api.rules import Rule, at, has


def _one_of(path: str, *fields: str) -> Rule:
    """Exactly one of some optional fields must be set."""
    listed = ", ".join(f"has(self.{field})" for field in fields)
    return Rule(
        path=path,
        field="",
        cel=f"[{listed}].filter(x, x).size() == 1",
        holds=lambda self: sum(has(self, field) for field in fields) == 1,
        message=f"must have exactly one of {', '.join(fields)}",
    )


_MODEL = (
    Rule(
        path="spec.model",
        field="",
        cel="has(self.from) != (has(self.config) || has(self.fromSnapshot))",
        holds=lambda self: has(self, "from") != (has(self, "config") or has(self, "fromSnapshot")),
        message=(
            "must have exactly one of config (random weights), from (a Hugging Face folder) and fromSnapshot (another"
            " job's volume); config may stand beside fromSnapshot, as the shape of a snapshot that is no export"
        ),
    ),
    Rule(
        path="spec.model",
        field="",
        cel="!has(self.config) || has(self.tokenizer)",
        holds=lambda self: not has(self, "config") or has(self, "tokenizer"),
        message="config needs a tokenizer; give tokenizer.characters or tokenizer.path",
    ),
    _one_of("spec.model.tokenizer", "characters", "path"),
    Rule(
        path="spec.model.config",
        field="heads",
        cel="!has(self.kvHeads) || self.heads % self.kvHeads == 0",
        holds=lambda self: not has(self, "kvHeads") or self.heads % self.kvHeads == 0,
        message="{self.heads} is not divisible by kvHeads ({self.kvHeads})",
    ),
    Rule(
        path="spec.model.config",
        field="kvHeads",
        cel="self.architecture != 'opt' || !has(self.kvHeads) || self.kvHeads == self.heads",
        holds=lambda self: self.architecture != "opt" or not has(self, "kvHeads") or self.kvHeads == self.heads,
        message="is {self.kvHeads}; opt has one for each of its heads ({self.heads}): leave kvHeads out",
    ),
    Rule(
        path="spec.model.config",
        field="hiddenSize",
        cel="(has(self.headDim) && self.headDim > 0) || self.hiddenSize % self.heads == 0",
        holds=lambda self: (has(self, "headDim") and self.headDim > 0) or self.hiddenSize % self.heads == 0,
        message="{self.hiddenSize} is not divisible by heads ({self.heads}); change one of them or set headDim",
    ),
    Rule(
        path="spec.model.config",
        field="headDim",
        cel=(
            "self.architecture != 'opt' || !has(self.headDim) || self.headDim == 0"
            " || self.headDim * self.heads == self.hiddenSize"
        ),
        holds=lambda self: (
            self.architecture != "opt"
            or not has(self, "headDim")
            or self.headDim == 0
            or self.headDim * self.heads == self.hiddenSize
        ),
        message="is {self.headDim}; opt's heads share hiddenSize ({self.hiddenSize}) equally: leave headDim out",
    ),
    Rule(
        path="spec.model.config",
        field="headDim",
        cel=(
            "self.architecture == 'opt' || (has(self.headDim) ? self.headDim % 2 == 0"
            " : self.hiddenSize % self.heads != 0 || (self.hiddenSize / self.heads) % 2 == 0)"
        ),
        holds=lambda self: (
            self.architecture == "opt"
            or (has(self, "headDim") and self.headDim % 2 == 0)
            or (
                not has(self, "headDim")
                and (self.hiddenSize % self.heads != 0 or (self.hiddenSize // self.heads) % 2 == 0)
            )
        ),
        message="{self.headDim} is odd; rotary positions need an even size",
    ),
)


_SOURCE = (
    Rule(
        path="spec.model.fromSnapshot",
        field="folder",
        cel="!self.folder.contains('..')",
        holds=lambda self: ".." not in self.folder,
        message='"{self.folder}" leads out of the volume; leave ".." out',
    ),
)

_DATA = (
    _one_of("spec.dataset", "entryPoint", "jsonLines", "reasoningGym"),
    Rule(
        path="spec.dataset",
        field="template",
        cel="!has(self.template) || self.template.contains('{prompt}')",
        holds=lambda self: not has(self, "template") or "{prompt}" in self.template,
        message='"{self.template}" does not contain {prompt}, the place of each prompt',
    ),
    Rule(
        path="spec.reward",
        field="target",
        cel="(self.kind == 'entryPoint') == has(self.target)",
        holds=lambda self: (self.kind == "entryPoint") == has(self, "target"),
        message='is for kind entryPoint, which needs it as "package.module:function"; kind is {self.kind}',
    ),
    Rule(
        path="spec",
        field="reward.kind",
        cel="self.reward.kind != 'dataset' || !has(self.dataset.jsonLines)",
        holds=lambda self: self.reward.kind != "dataset" or not has(self, "dataset.jsonLines"),
        message="dataset needs a data set that scores answers itself; dataset.jsonLines does not: use prefix or exact",
    ),
)

_ROLLOUT = (
    Rule(
        path="spec.rollout",
        field="segmentTokens",
        cel="!has(self.segmentTokens) || self.segmentTokens <= self.maxTokens",
        holds=lambda self: not has(self, "segmentTokens") or self.segmentTokens <= self.maxTokens,
        message="{self.segmentTokens} is above maxTokens ({self.maxTokens}); a segment is a part of a trajectory",
    ),
    Rule(
        path="spec.rollout",
        field="segmentTokens",
        cel=(
            "!has(self.segmentTokens)"
            " || (self.maxTokens + self.segmentTokens - 1) / self.segmentTokens <= self.maxSegmentAge + 1"
        ),
        holds=lambda self: (
            not has(self, "segmentTokens") or -(-self.maxTokens // self.segmentTokens) <= self.maxSegmentAge + 1
        ),
        message=(
            "{self.segmentTokens} is too small: a trajectory of maxTokens ({self.maxTokens}) would be dropped before"
            " its end, as maxSegmentAge ({self.maxSegmentAge}) allows maxSegmentAge + 1 segments; raise one of them"
        ),
    ),
    Rule(
        path="spec.storage",
        field="keepIterations",
        cel="!has(self.keepIterations) || self.keepIterations >= 2 * self.snapshotEvery",
        holds=lambda self: not has(self, "keepIterations") or self.keepIterations >= 2 * self.snapshotEvery,
        message=(
            "{self.keepIterations} is below twice snapshotEvery ({self.snapshotEvery}): a resume may have to go back to"
            " the snapshot before the newest"
        ),
    ),
    above_zero("spec.rollout", "temperature"),
    Rule(
        path="spec.rollout",
        field="topP",
        cel="double(self.topP) > 0.0 && double(self.topP) <= 1.0",
        holds=lambda self: 0.0 < float(self.topP) <= 1.0,
        message='is "{self.topP}"; must be above 0 and at most 1',
    ),
    Rule(
        path="spec.rollout.repeat",
        field="count",
        cel="(self.ngram == 0 && self.count == 0) || (self.ngram > 0 && self.count >= 2)",
        holds=lambda self: (self.ngram == 0 and self.count == 0) or (self.ngram > 0 and self.count >= 2),
        message="is {self.count} with ngram {self.ngram}; give both 0 (off), or ngram 1 or more and count 2 or more",
    ),
    Rule(
        path="spec",
        field="rollout.groupsInFlight",
        cel="!has(self.rollout.groupsInFlight) || self.rollout.groupsInFlight >= self.algorithm.groupsPerIteration",
        holds=lambda self: (
            not has(self, "rollout.groupsInFlight") or self.rollout.groupsInFlight >= self.algorithm.groupsPerIteration
        ),
        message=(
            "{self.rollout.groupsInFlight} is below algorithm.groupsPerIteration"
            " ({self.algorithm.groupsPerIteration}); an iteration could never finish that many groups"
        ),
    ),
    Rule(
        path="spec",
        field="rollout.maxTokens",
        cel="!has(self.model.config) || self.rollout.maxTokens < self.model.config.maxPositions",
        holds=lambda self: not has(self, "model.config") or self.rollout.maxTokens < self.model.config.maxPositions,
        message=(
            "{self.rollout.maxTokens} leaves no room for a prompt in model.config.maxPositions"
            " ({self.model.config.maxPositions})"
        ),
    ),
)


def _divides(side: str, size: str, field: str) -> Rule:
    """A parallel size must divide a size of the model."""
    return Rule(
        path="spec",
        field=f"hybrid.{side}.{size}",
        cel=f"!has(self.model.config) || self.model.config.{field} % self.hybrid.{side}.{size} == 0",
        holds=lambda self: (
            not has(self, "model.config") or at(self, f"model.config.{field}") % at(self, f"hybrid.{side}.{size}") == 0
        ),
        message=f"{{self.hybrid.{side}.{size}}} does not divide model.config.{field} ({{self.model.config.{field}}})",
    )


_PARALLEL = (
    _divides("trainer", "tensorParallel", "heads"),
    _divides("trainer", "tensorParallel", "ffnSize"),
    Rule(
        path="spec",
        field="hybrid.trainer.tensorParallel",
        cel=(
            "!has(self.model.config) || !has(self.model.config.kvHeads)"
            " || self.model.config.kvHeads % self.hybrid.trainer.tensorParallel == 0"
        ),
        holds=lambda self: (
            not has(self, "model.config.kvHeads") or self.model.config.kvHeads % self.hybrid.trainer.tensorParallel == 0
        ),
        message=(
            "{self.hybrid.trainer.tensorParallel} does not divide model.config.kvHeads ({self.model.config.kvHeads});"
            " the trainer splits key-value heads and does not copy them"
        ),
    ),
    _divides("trainer", "pipelineParallel", "layers"),
    Rule(
        path="spec.hybrid.trainer",
        field="sequenceParallel",
        cel="!self.sequenceParallel || self.tensorParallel > 1",
        holds=lambda self: not self.sequenceParallel or self.tensorParallel > 1,
        message="divides activations over the ranks of tensorParallel, which is 1; raise it, or leave this out",
    ),
    _divides("inference", "tensorParallel", "heads"),
    _divides("inference", "tensorParallel", "ffnSize"),
    Rule(
        path="spec",
        field="hybrid.inference.tensorParallel",
        cel=(
            "!has(self.model.config) || !has(self.model.config.kvHeads)"
            " || self.model.config.kvHeads % self.hybrid.inference.tensorParallel == 0"
            " || self.hybrid.inference.tensorParallel % self.model.config.kvHeads == 0"
        ),
        holds=lambda self: (
            not has(self, "model.config.kvHeads")
            or self.model.config.kvHeads % self.hybrid.inference.tensorParallel == 0
            or self.hybrid.inference.tensorParallel % self.model.config.kvHeads == 0
        ),
        message=(
            "{self.hybrid.inference.tensorParallel} and model.config.kvHeads ({self.model.config.kvHeads}):"
            " one must divide the other, SGLang splits or copies key-value heads"
        ),
    ),
)

_HYBRID = (
    Rule(
        path="spec.hybrid",
        field="lifeCycle",
        cel="self.lifeCycle != 'Keep' || self.accelerators == 0",
        holds=lambda self: self.lifeCycle != "Keep" or self.accelerators == 0,
        message=(
            "Keep would leave the engine on the accelerators that the trainer needs; use Restart or Sleep"
            " (Keep is for pods without accelerators)"
        ),
    ),
    Rule(
        path="spec.hybrid",
        field="lifeCycle",
        cel="self.lifeCycle != 'Sleep' || self.accelerators > 0",
        holds=lambda self: self.lifeCycle != "Sleep" or self.accelerators > 0,
        message="Sleep gives an accelerator's memory back, and accelerators is 0; use Restart or Keep",
    ),
    Rule(
        path="spec.hybrid",
        field="trainer",
        cel=(
            "self.accelerators == 0 || self.trainer.tensorParallel * self.trainer.pipelineParallel"
            " * self.trainer.dataParallel <= self.accelerators"
        ),
        holds=lambda self: (
            self.accelerators == 0
            or self.trainer.tensorParallel * self.trainer.pipelineParallel * self.trainer.dataParallel
            <= self.accelerators
        ),
        message=(
            "tensorParallel {self.trainer.tensorParallel} x pipelineParallel {self.trainer.pipelineParallel} x"
            " dataParallel {self.trainer.dataParallel} is more than the accelerators of a pod ({self.accelerators})"
        ),
    ),
    Rule(
        path="spec.hybrid",
        field="inference.tensorParallel",
        cel="self.accelerators == 0 || self.inference.tensorParallel <= self.accelerators",
        holds=lambda self: self.accelerators == 0 or self.inference.tensorParallel <= self.accelerators,
        message="{self.inference.tensorParallel} is more than the accelerators of a pod ({self.accelerators})",
    ),
    Rule(
        path="spec.hybrid",
        field="runtimeClass",
        cel="!has(self.runtimeClass) || self.sharing == 'WholeNode'",
        holds=lambda self: not has(self, "runtimeClass") or self.sharing == "WholeNode",
        message="is only for sharing WholeNode; leave it out with sharing {self.sharing}",
    ),
)


_STORAGE = (
    Rule(
        path="spec.storage.snapshots",
        field="url",
        cel="!has(self.url)",
        holds=lambda self: not has(self, "url"),
        message=(
            '"{self.url}" cannot be used: a URL is not supported yet. Snapshots and exports go to a ReadWriteMany'
            " claim: leave url out, and give size (a new claim) or existingClaim"
        ),
    ),
)

_FAILURE = (
    Rule(
        path="spec.failurePolicy",
        field="backoffSeconds",
        cel="self.backoffSeconds <= self.maxBackoffSeconds",
        holds=lambda self: self.backoffSeconds <= self.maxBackoffSeconds,
        message="{self.backoffSeconds} is above maxBackoffSeconds ({self.maxBackoffSeconds})",
    ),
)

JOB_RULES: tuple[Rule, ...] = (
    *_MODEL,
    *_SOURCE,
    *_DATA,
    *ALGORITHM_RULES,
    *_ROLLOUT,
    *_PARALLEL,
    *_HYBRID,
    *JOB_ENGINES,
    *_STORAGE,
    *_FAILURE,
    *JOB_PATCHES,
    *JOB_CHANGES,
)
POOL_RULES: tuple[Rule, ...] = (
    Rule(
        path="spec",
        field="inference.tensorParallel",
        cel="self.accelerators == 0 || self.inference.tensorParallel <= self.accelerators",
        holds=lambda self: self.accelerators == 0 or self.inference.tensorParallel <= self.accelerators,
        message="{self.inference.tensorParallel} is more than the accelerators of a pod ({self.accelerators})",
    ),
    *POOL_ENGINES,
    *POOL_PATCHES,
    *POOL_CHANGES,
)
SANDBOX_RULES: tuple[Rule, ...] = (
    Rule(
        path="spec",
        field="runtimes",
        cel="",  # the list is a map by name, which the API server keeps by itself
        holds=lambda self: len({runtime["name"] for runtime in self.runtimes}) == len(self.runtimes),
        message="names must differ",
    ),
)
