"""FG1xx: input and call."""

from __future__ import annotations

from fp8graph.base.pages.code import Code

CODES = (
    Code(
        "FG100",
        "an option has a value that cannot be used, or is missing",
        "A value after an option could not be read, an option that the command needs was left out, or two options "
        "contradict each other.",
        "Nothing was run and nothing was written; a guess at what was meant would decide about your model.",
        "Read 'do' of the message, or `python -m fp8graph COMMAND --help`. Shapes are typed x:[1,3,224,224] or "
        "x:1x3x224x224, sizes 512M or 4G.",
    ),
    Code(
        "FG101",
        "a name is not known",
        "A command, option, recipe, target, chip, pass, runner or code was named that does not exist.",
        "Names are never shortened or guessed, so that a script means the same after an update.",
        "Take the name that the message proposes, or list them: `python -m fp8graph recipes`, `targets`, `passes`, "
        "`explain`.",
    ),
    Code(
        "FG102",
        "the output exists",
        "A file with the output's name is there already, or the name is a folder.",
        "Results are never overwritten silently: a plan beside a model that is not its own is worse than an error.",
        "Choose another name after -o, or add --force.",
    ),
    Code(
        "FG103",
        "the output would overwrite an input",
        "The output, or a file written beside it, is one of the inputs; links are followed.",
        "Inputs are never changed, with --force neither: the result is compared with the original.",
        "Choose another name after -o.",
    ),
    Code(
        "FG104",
        "external data is refused",
        "The model keeps weights in another file, and that file lies outside the model's folder, is missing, or is "
        "shorter than the model says.",
        "A model from elsewhere must not be able to read your other files, and weights that are half there are wrong "
        "without looking so.",
        "Put the data file beside the model, complete. A model that was copied needs its data file copied, too.",
    ),
    Code(
        "FG105",
        "a model and its data file do not belong together",
        "The digest in the model is not that of the data file beside it: one of the two was replaced or cut short.",
        "Each file alone looks whole; together they give numbers that nobody has computed.",
        "Write both anew, or copy both from where they were made.",
    ),
    Code(
        "FG106",
        "the model cannot be read",
        "The file is missing, no ONNX model, cut short, or breaks a rule of ONNX.",
        "What cannot be read completely is not worked on.",
        "Try `python -c \"import onnx; onnx.checker.check_model('m.onnx')\"`, or export or download it again.",
    ),
    Code(
        "FG107",
        "the data does not fit the model",
        "An input is missing or unknown, has another type or shape, or the inputs give different numbers of samples.",
        "Scales taken from data of another shape or another model are wrong without looking so.",
        "Name the arrays like the model's inputs (`python -m fp8graph inspect MODEL --show io`). An array of the "
        "input's rank is cut along its first axis; with one axis more it holds one sample per index; a single number "
        "is for every sample. A sample is what the model takes in one run, a whole batch.",
    ),
    Code(
        "FG108",
        "the data cannot be read",
        "The file is missing, is no .npz, .npy, feeds of Polygraphy or folder of those, or holds pickled objects; or a "
        "script:FILE.py:FUNCTION cannot be imported, or fails.",
        "Pickled arrays can run code when they are opened, so they are refused.",
        "Save plain arrays: numpy.savez('calib.npz', x=array). An array of dtype object needs a numeric dtype first.",
    ),
    Code(
        "FG109",
        "a pattern matches no operator",
        "A pattern of --nodes-to-exclude, --nodes-to-quantize, --op or of a recipe selects nothing in this model.",
        "A typo would otherwise quantize the very op that was to be left alone.",
        "`python -m fp8graph inspect PLAN --op 'layers.0/*'` shows keys and names. Narrow with key:, name:, type: or "
        "re:, and quote patterns for the shell.",
    ),
    Code(
        "FG110",
        "the plan does not fit",
        "The plan was made for a model of another structure, for another target, or contradicts an option.",
        "A plan holds a decision for each operator by its key; on another graph those decisions mean nothing.",
        "Make a plan for this model, or leave out the options that contradict it: a plan brings its own target, recipe "
        "and shapes.",
    ),
    Code(
        "FG111",
        "a document is refused",
        "A plan, ranges, attestation or manifest is missing, damaged, of another kind, or of a newer version.",
        "Documents are read completely or not at all; a missing entry is never filled in.",
        "Write it anew. Where it is newer, update fp8graph.",
    ),
    Code(
        "FG112",
        "the output's folder is missing",
        "The folder that the output is to lie in does not exist.",
        "Folders are not created silently: a typo in a path would scatter results.",
        "mkdir -p the folder, or correct the path.",
    ),
    Code(
        "FG113",
        "a pass or rule is refused",
        "A pass, rule or repair is not known, two packages own its name, its options are wrong, or its file could not "
        "be loaded.",
        "A recipe whose pass is left out would be another recipe.",
        "`python -m fp8graph passes` lists them with their owners; owner:name picks one. After installing from source: "
        "pip install -e .",
    ),
    Code(
        "FG114",
        "two files that do not belong together",
        "`diff` was given two files that cannot be laid side by side op by op, such as a plan and an engine; or "
        "`report` a plan and an attestation that was made with another plan.",
        "A difference between kinds says nothing: a plan promises, a model is made, an engine does. And two models may "
        "share names of operators.",
        "Give two plans, two models, two engines, two attestations or two ranges. What an engine makes of a plan, "
        "`attest ENGINE --model M --plan P` says; `report` takes what it prints by --json, and the same P.",
    ),
    Code(
        "FG115",
        "a checkpoint cannot be read",
        "A safetensors file, an index or a shard is missing or cut short, or its header does not say the truth: "
        "overlapping or impossible offsets, a dtype that does not exist, a name that stands twice. Or it is a pickle.",
        "A file that lies about itself is not believed in part, and a pickle can run code when it is opened.",
        "Download it again. A pickle is saved as safetensors where torch is: safetensors.torch.save_file.",
    ),
    Code(
        "FG116",
        "a number of a checkpoint is refused",
        "A weight in FP8 has no scale, or one of a shape that fits no granularity; a scale is zero, negative, NaN or "
        "infinite; a weight holds NaN; or the weights are stored in a way that `import` does not read.",
        "One wrong scale spoils a whole layer and looks like any other number.",
        "Write or download the checkpoint anew. Shapes that are read: one number, one for each output channel, and "
        "blocks of the size that config.json says (128 x 128 where it says none).",
    ),
    Code(
        "FG117",
        "a checkpoint and a model do not belong together",
        "Tensors of the checkpoint found no place in the model, weights of the model found none in the checkpoint, or "
        "a weight has another shape there.",
        "A layer that keeps the weights that the export happened to have gives numbers that nobody has trained.",
        "Export the model from the same architecture. What may be left over is named by --allow-unmatched 'GLOB'.",
    ),
    Code(
        "FG118",
        "a given scale has no place in the graph",
        "The checkpoint brings a scale that this graph has no tensor for, such as that of a cache of keys and values "
        "in a graph without caches. It stands in the result and in the model's metadata (fp8graph.given_scales).",
        "Nothing is rounded with it; whoever reads the model can still find it.",
        "Nothing, where the cache is not to be FP8.",
    ),
    Code(
        "FG120",
        "data is needed and was not given",
        "The plan takes scales of activations from observation, and there is nothing to observe.",
        "Scales that were guessed or taken from noise would be a silent default; they must be asked for.",
        "Give --data FILE with some dozens of real samples, --ranges FILE of an earlier calibrate, or --data random "
        "for a try-out.",
    ),
    Code(
        "FG121",
        "scales come from random data",
        "--data random was given: the observed ranges are those of noise. The plan records it.",
        "Real inputs have other ranges; the accuracy of this model says nothing about the real one.",
        "Use it to see that a model passes through and how fast it is, and calibrate with real samples before "
        "shipping.",
    ),
    Code(
        "FG122",
        "rows of the data were left over",
        "A sample is what the model takes in one run: a whole batch of rows. The number of rows is no multiple of the "
        "model's batch size (or of --batch); the rest that does not fill a batch was left out.",
        "A few rows were not looked at. That is harmless unless they are many.",
        "Give a multiple of the batch size, or --batch N where the model's batch is dynamic.",
    ),
    Code(
        "FG123",
        "the metric cannot be used",
        "--metric names a function of your own whose file cannot be run, or that failed, or gave no number.",
        "Plans are judged by what it returns; without a number there is nothing to go by.",
        "Write def FUNCTION(pairs): it gets an iterator of (feeds, outputs), two mappings of arrays by name, in the "
        "order of the samples, and returns one number, more for better.",
    ),
    Code(
        "FG130",
        "a result could not be written",
        "The disk is full, a permission is missing, or the file system refused.",
        "Nothing is left half-written: either all files of a result are there, or none.",
        "Make room or choose another folder, then run the same command again.",
    ),
    Code(
        "FG131",
        "interrupted",
        "The command was stopped by Ctrl-C before its end (status 130).",
        "No partial output remains.",
        "Run the command again.",
    ),
    Code(
        "FG132",
        "memory ran out",
        "The machine had no more memory for the next step (status 4).",
        "Nothing was written.",
        "Give --batch 1 or fewer --samples, or use a machine with more memory.",
    ),
    Code(
        "FG133",
        "a runtime refused the model",
        "ONNX Runtime cannot load or run the model (status 4); its own reason stands in the message.",
        "Calibration and comparison run the model: what cannot be run cannot be observed.",
        "Run the original model in ONNX Runtime first; custom operators need their library.",
    ),
    Code(
        "FG140",
        "a recipe is refused",
        "The TOML cannot be read, has a key that recipes do not have, lacks one, or gives it a wrong value.",
        "A key with a typo would be ignored elsewhere, and the model would be quantized otherwise than written.",
        "`python -m fp8graph recipes show fp8-default` prints a recipe that works; `recipes validate FILE` checks "
        "yours.",
    ),
    Code(
        "FG141",
        "the recipe does not carry its plan out",
        "The plan quantizes operators, and after the recipe's passes an operand of one has no Q/DQ.",
        "A result that is called FP8 and holds none would be a lie.",
        "Name `insert-qdq` among the recipe's `passes`; `recipes show fp8-default` has the usual list.",
    ),
    Code(
        "FG150",
        "there is nothing to quantize",
        "No operator of this model ends up in low precision. The findings give a reason for each that was considered.",
        "A model written under a new name with nothing changed would pass for a quantized one; none was written.",
        "Read the reasons; FG3xx are the target's. --allow-unquantized makes it status 0 and writes the model.",
    ),
    Code(
        "FG151",
        "no plan holds the accuracy",
        "The accuracy that was asked for is out of reach: not even the plan with the fewest operators in low precision "
        "that the search may make holds it on the samples that plans were judged on. The best that was seen is named.",
        "A model that misses what was asked for would be taken for one that holds it; none was written.",
        "Ask for what was reached, or less; --high-precision-dtype fp32 where the high-precision part is what costs; "
        "give more data, so that scales and judgement rest on more.",
    ),
    Code(
        "FG152",
        "it is not good even with everything in high precision",
        "`debug precision` asked first about the model with every operator in high precision, and the command after "
        "--check, or the bounds, called that bad.",
        "No set of operators to keep can be found then: the judge would call the original model bad, too, or the "
        "high-precision part alone (fp16, folded constants) loses more than the bounds allow.",
        "Run the command on the original model; see with -v what it prints. Bounds: ask for less, or make the plan "
        "with --high-precision-dtype fp32.",
    ),
)
