"""FG4xx numbers, FG5xx engines, FG9xx contracts."""

from __future__ import annotations

from fp8graph.base.pages.code import Code

CODES = (
    Code(
        "FG401",
        "outputs hold NaN or infinity",
        "The second model gives NaN or infinity where the first gives a number.",
        "Whatever follows is meaningless; one infinity in an attention spreads over the whole sequence.",
        "Keep the operators where it starts (`inspect PLAN --op`), or use --high-precision-dtype fp32 or bf16.",
    ),
    Code(
        "FG402",
        "an output has lost much accuracy",
        "The signal to quantization noise ratio of an output is low on the data given.",
        "Below about 10 dB a tenth of the output's power is error; what it does to your metric only your metric tells.",
        "Use more and real calibration data; keep sensitive operators with --nodes-to-exclude; measure your metric.",
    ),
    Code(
        "FG403",
        "the models have no layer in common",
        "No op of the two models goes under the same key (the name of its output), and no two ops that share a node "
        "name are of one type.",
        "Layers that only look alike would be measured against each other, and the table would be believed.",
        "Compare a model with what was made of it. Exporters that rename tensors between two exports leave only the "
        "outputs to compare: leave --layers out.",
    ),
    Code(
        "FG501",
        "the engine does not do what the plan says",
        "The engine computes the operator in another precision than planned.",
        "The weight is small in the file, and the arithmetic is as slow as before, or slower.",
        "Read the 'why' of the verdict. Build with the plan's shapes, and check the model: `check MODEL --plan PLAN`.",
    ),
    Code(
        "FG502",
        "an operator was not found in the engine",
        "No layer of the engine names this operator, so that nothing can be said about it.",
        "Unknown is no success: the operator may run in any precision.",
        "Build with fp8graph (detailed layer information is always on) and attest with the very model it was built "
        "from.",
    ),
    Code(
        "FG503",
        "two witnesses disagree",
        "The engine's program and its layer information say different things about an operator.",
        "One of them is read wrongly, so the verdict is `unknown`, which is no success.",
        "Report it with the attestation document.",
    ),
    Code(
        "FG504",
        "the builder refused the model",
        "The engine builder ended with an error; the message quotes it.",
        "No engine was written.",
        "`check MODEL --target TARGET` finds most causes beforehand; --log-file F keeps the builder's whole log.",
    ),
    Code(
        "FG505",
        "a builder or runtime is not installed",
        "The target needs a package that is not there, or not usable on this machine.",
        "Nothing was built or run.",
        "`python -m fp8graph doctor` says what is missing and how to install it; for TensorRT-RTX: "
        "pip install 'fp8graph[rtx]'.",
    ),
    Code(
        "FG506",
        "the build took too long",
        "The builder did not end within --timeout seconds and was stopped.",
        "No engine was written, and no process goes on.",
        "Give more time, or a lower --builder-optimization-level.",
    ),
    Code(
        "FG507",
        "the builder crashed",
        "The process of the builder ended by a signal or without a result.",
        "It runs in a process of its own, so that nothing else was harmed; no engine was written.",
        "Try again with more memory, a lower --builder-optimization-level, or another version of the builder; "
        "--log-file F keeps its log.",
    ),
    Code(
        "FG508",
        "the engine file cannot be read",
        "The file is missing, no engine, damaged, or of a version that is not known.",
        "Nothing can be attested of what cannot be read.",
        "Build it anew with `python -m fp8graph build`.",
    ),
    Code(
        "FG509",
        "the engine was built from something else",
        "The manifest says that the engine was built from another model, from other data files, or with another plan.",
        "Names of operators coincide between models: what the engine does with a name says nothing about yours. Of an "
        "engine of another model every verdict is `unknown`.",
        "Give --model and --plan the files that `build` was given, or build the engine anew from these.",
    ),
    Code(
        "FG510",
        "the manifest speaks of another engine",
        "The manifest beside the engine was written for other bytes: the engine was changed or replaced after it was "
        "built, or the manifest belongs to another one.",
        "The builder's layer listing in it is no witness any more. Verdicts then rest on the engine file alone, and "
        "nothing says from which model it was built.",
        "Build the engine anew. Where it was built elsewhere on purpose, move the manifest away.",
    ),
    Code(
        "FG511",
        "a witness or a document is missing",
        "No manifest lies beside the engine, it holds no layers, or the plan that the engine was built with was not "
        "given.",
        "Without the builder's listing verdicts rest on the engine file alone; without a manifest nothing says from "
        "which model it was built, so that operators are found by their names only.",
        "Keep ENGINE.json beside ENGINE, and the plan beside the model; `build` writes the one, `optimize` the other.",
    ),
    Code(
        "FG512",
        "the model is not what the plan wrote",
        "An operator that the plan quantizes lacks its Q/DQ in the model or has other scales, or the model quantizes "
        "what the plan does not.",
        "The engine may do what the model says and still not what the plan decided; where Q/DQ are missing and the "
        "engine runs FP8 all the same, engine and model do not belong together.",
        "Write the model anew with `optimize SOURCE -o MODEL --plan PLAN`, or give --plan the one that wrote it.",
    ),
    Code(
        "FG900",
        "something broke inside fp8graph",
        "An error happened that the program did not expect (status 5).",
        "It is our bug, not your model's or your call's. No result was written.",
        "Report it with the file that the message names; -v prints what is in it.",
    ),
    Code(
        "FG901",
        "a pass broke its contract",
        "A pass changed what it promised not to change (the model's interface, planned operators), or said that it "
        "changed nothing and did.",
        "Passes are checked after each run, because a wrong graph may still look right.",
        "Report it to the owner of the pass that the message names; --passes and recipes can leave it out.",
    ),
)
