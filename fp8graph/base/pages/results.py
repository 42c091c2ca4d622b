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
