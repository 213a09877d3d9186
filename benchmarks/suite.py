"""What is compared with what."""

from __future__ import annotations

from benchmarks import commands, convolutions, elsewhere, memory, rows, serving, spending, trials, workers
from benchmarks.measure import Comparison, Variant
from benchmarks.starting import ASKED

ONE_OR_TWO = (1, 2)

JOB = Comparison(
    "job", "The whole job",
    "From the four archives in a folder to a scored model, 50 epochs, as commands. `idxflow run` begins with an empty "
    "store, starts Prefect for itself, checks, validates, trains, scores, confirms, decides and reports; the script "
    "only trains and scores.",
    "job",
    (
        Variant("idxflow run", "profile `tutorial`, empty store, own Prefect server"),
        Variant("tutorial script", "the same recipe as a plain Keras script, without its progress bar"),
    ),
    "tutorial script", most_rounds=3,
)  # fmt: skip
RERUN = Comparison(
    "rerun", "Running again with nothing new",
    "`idxflow run` with an empty store, then the same command again, on a Prefect server that runs already.",
    "job",
    (Variant("unchanged run", "verifies and reuses every step", rows=("first run", "unchanged run")),),
    "first run", most_rounds=3,
)  # fmt: skip
ELSEWHERE = Comparison(
    "elsewhere", "A store in object storage",
    "`idxflow run mnist --profile tutorial` with an empty store, then again, on a server of S3 on the same machine "
    "(MiniStack, which keeps all in memory) and in a folder. Each run starts Prefect for itself.",
    "elsewhere",
    (
        Variant(elsewhere.FOLDER, "", rows=elsewhere.rows(elsewhere.FOLDER)),
        Variant(elsewhere.OBJECTS, "`--store s3://…`", rows=elsewhere.rows(elsewhere.OBJECTS)),
    ),
    elsewhere.row(elsewhere.RUNS[0], elsewhere.FOLDER), most_rounds=3,
)  # fmt: skip
SPENDING = Comparison(
    "spending", "Where the seconds go",
    "Four whole commands, by what `idxflow run --timings` prints: the imports of each library without what they import "
    "themselves, Prefect, the steps. `the rest` is what has no name.",
    "spending",
    (Variant("parts", "", rows=spending.rows()),),
    spending.row(spending.ALL, spending.COMMANDS[0]), most_rounds=3, columns=spending.COMMANDS,
)  # fmt: skip
COMMANDS = Comparison(
    "commands", "Commands that read a store",
    "Whole processes, with a store that has one run in it; and how soon a run prints its first line into a pipe.",
    "commands",
    (Variant("commands", "", rows=(*commands.READING, commands.FIRST_LINE)),),
    commands.FIRST_LINE,
)  # fmt: skip
MEMORY = Comparison(
    "memory", "Memory",
    "The peak of `idxflow run mnist --profile tutorial`, of the same again, and of the Prefect server of each. "
    "Libraries are read anew from the disk.",
    "memory",
    (Variant("runs", "", rows=memory.ROWS),),
    memory.ROWS[0], most_rounds=3, unit="GB",
)  # fmt: skip
TRAINING = Comparison(
    "training", "One epoch of training",
    "54,000 rows in random order, batches of 64, 784-50-50-10 with tanh, momentum, falling rate; loss and accuracy "
    "of the fitted rows, and the accuracy of the 6,000 held out. Median of the epochs after the first.",
    "training",
    (
        Variant("idxflow", "the step `train`, one compiled call per epoch"),
        Variant("idxflow in a run", "the same within `idxflow run`, Prefect beside it"),
        Variant("model.fit", "Keras on TensorFlow, as the tutorial calls it", ONE_OR_TWO),
        Variant("steps_per_execution", "the same with `steps_per_execution=100`", ONE_OR_TWO),
        Variant("torch", "a loop over batches, fused SGD", ONE_OR_TWO),
        Variant("jax, lax.scan", "one compiled call per epoch", ONE_OR_TWO),
        Variant("jax, a call per step", "one compiled call per step", ONE_OR_TWO),
        Variant("scikit-learn", "`MLPClassifier.partial_fit`", ONE_OR_TWO),
        Variant("numpy by hand", "forward and backward pass written out", ONE_OR_TWO),
        Variant("BLAS floor", "the matrix products alone, by NumPy's OpenBLAS", ONE_OR_TWO),
    ),
    "idxflow",
)  # fmt: skip
CONVOLUTIONS = Comparison(
    "convolutions", "One epoch of the profile `conv`",
    f"{convolutions.FITTED:,} rows of MNIST in random order, batches of 64: two convolutions with batch normalization "
    "and pooling, 128 units, dropout; loss and accuracy of the fitted rows, and the accuracy of the "
    f"{convolutions.HELD_OUT:,} held out. Median of the epochs after the first. idxflow always trains on one thread.",
    "convolutions",
    (
        Variant(convolutions.OURS, "the loop of the step `train`, one compiled call per epoch", (1,)),
        Variant(convolutions.name_of("model.fit", 1), "Keras on TensorFlow", (1,)),
        Variant(convolutions.name_of("model.fit", 2), "the same", (2,)),
        Variant(convolutions.name_of("jax", 1), "one compiled call per step", (1,)),
        Variant(convolutions.name_of("jax", 2), "the same", (2,)),
    ),
    convolutions.OURS, most_rounds=3,
)  # fmt: skip
DECODING = Comparison(
    "decoding", "Decoding the training archives",
    "60,000 images and labels from the two gzip archives to uint8 arrays in memory; files in the system's cache. "
    "`gunzip …` only decompress the same bytes in memory.",
    "decoding",
    (
        Variant("idxflow to arrays", "`storage.formats.idx.read`: header, length, CRC and digest checked"),
        Variant("idxflow to Parquet", "the step `decode`: the same, and written as Parquet"),
        Variant("gzip + frombuffer", "`gzip.open` and `numpy.frombuffer`, nothing checked but the CRC"),
        Variant("like torchvision", "unpacked to a file first, then read from it"),
        Variant("idx2numpy", "from an open gzip stream"),
        Variant("python-mnist", "to lists, as it does by default", rounds=2),
        Variant("python-mnist, numpy", "with `return_type=\"numpy\"`", rounds=2),
        Variant("gunzip zlib", "`zlib.decompress`, size known"),
        Variant("gunzip isal", "ISA-L"),
        Variant("gunzip zlib-ng", "zlib-ng"),
        Variant("gunzip libdeflate", "libdeflate"),
    ),
    "idxflow to arrays",
)  # fmt: skip
ADDING = Comparison(
    "adding", "Making a data set of a table and of pictures",
    "`idxflow dataset add` on the first 42,000 training images as a CSV table of Kaggle's form, and on all 70,000 "
    "images as PNG files: read, checked, divided, packed, with a manifest and a picture; files in the system's cache. "
    "The others only read.",
    "adding",
    (
        Variant("idxflow, table", "to four archives"),
        Variant("pandas.read_csv", "to a data frame"),
        Variant("idxflow, pictures", "to four archives"),
        Variant("Pillow loop", "`numpy.asarray(Image.open(file))` for each file"),
    ),
    "idxflow, table", most_rounds=3,
)  # fmt: skip
READING = Comparison(
    "reading", "Reading the decoded split back",
    "60,000 images and labels from a file to uint8 arrays; files in the system's cache.",
    "reading",
    (
        Variant("idxflow", "`storage.formats.parquet.read`: page checksums and columns checked"),
        Variant("idxflow, in blocks", "`storage.formats.parquet.blocks`, as the steps read"),
        Variant("pyarrow", "the same file, `read_table`, no checksums", ONE_OR_TWO),
        Variant("pandas", "the same file, `read_parquet`, pixels joined", ONE_OR_TWO),
        Variant("Parquet with lists", "pixels as a list column, zstd, pyarrow", ONE_OR_TWO),
        Variant("npz", "`numpy.savez_compressed`", (1,)),
        Variant("npz, not compressed", "`numpy.savez`: 47 MB on disk", (1,)),
    ),
    "idxflow",
)  # fmt: skip
STATISTICS = Comparison(
    "statistics", "Statistics of the training pixels",
    "Mean of each pixel and one standard deviation, from our Parquet file of 60,000 images.",
    "reading",
    (
        Variant("statistics idxflow", "exact sums in whole numbers, block by block"),
        Variant("statistics numpy float32", "all scaled at once, `mean` and `std`", ONE_OR_TWO),
        Variant("statistics numpy float64", "the same in float64, as the tutorial", ONE_OR_TWO),
        Variant("statistics StandardScaler", "scikit-learn, variances combined", ONE_OR_TWO),
        Variant("statistics keras Normalization", "the layer, `adapt`", ONE_OR_TWO),
    ),
    "statistics idxflow",
)  # fmt: skip
VALIDATION = Comparison(
    "validation", "Validation of both splits",
    "All 70,000 images and labels, from Parquet to a verdict.",
    "validating",
    (
        Variant("idxflow", "a summary row per image, all suites by Great Expectations"),
        Variant("numpy by hand", "nine of the same facts as asserts, no report of rows"),
        Variant("pixels in Great Expectations", "a column per pixel, 1,000 images only", rounds=1),
    ),
    "idxflow",
)  # fmt: skip
STARTING = Comparison(
    "starting", "Start-up",
    "Whole processes, from start to end.",
    "starting",
    tuple(Variant(name, "") for name in ASKED),
    "idxflow --help",
)  # fmt: skip
SPLITS = Comparison(
    "splits", "Both splits on two processors",
    "Both splits of MNIST to Parquet; within each, inflating runs beside compressing anyway.",
    "cores",
    (Variant("splits in turn", ""), Variant("splits side by side", "as a run decodes them")),
    "splits in turn",
)  # fmt: skip
SEEDS = Comparison(
    "seeds", "Several seeds on two processors",
    "`python -m benchmarks.seeds digits --seeds 4`: whole runs, each with a Prefect server of its own.",
    "cores",
    (Variant("seeds in turn", "`--at-once 1`"), Variant("seeds, two at once", "`--at-once 2`")),
    "seeds in turn", most_rounds=2,
)  # fmt: skip
TUNE = Comparison(
    "tune", "Trials of a study",
    f"{trials.TRIALS} trials of {trials.EPOCHS} epochs of MNIST, the same values in each, nothing pruned; from the "
    "start of the first to the end of the last, with the imports of the libraries. Seconds for each trial.",
    "trials",
    (
        Variant(trials.ONE, "`idxflow tune mnist`, each trial an entry of the store"),
        Variant(trials.TWO, "`--at-once 2`"),
        Variant(trials.KERAS, "`study.optimize`, a `model.fit` for each trial; nothing is kept", (1,), rounds=1),
    ),
    trials.ONE, most_rounds=3,
)  # fmt: skip
WORKERS = Comparison(
    "workers", "What a part costs on workers",
    "2,000 parts that do nothing, through processes of the run (`--workers`), from the first that is given away to the "
    "last result; the processes had started before. Milliseconds for each part.",
    "workers",
    (
        Variant("one worker", "`--workers 1`"),
        Variant("two workers", "`--workers 2`"),
    ),
    "one worker", most_rounds=3, unit="milliseconds",
)  # fmt: skip
SERVING = Comparison(
    "serving", "Answering over HTTP",
    f"One image of MNIST in a request, as JSON, by the tutorial's network, over {serving.CONNECTIONS} connections that "
    "each wait for their answer; server and client share the processors. `a request` is the whole time divided by the "
    "number of requests, `p99` the time that 99% of them took at most.",
    "serving",
    (
        Variant(serving.OURS, "", rows=serving.rows(serving.OURS)),
        Variant(serving.BARE, "a dozen lines: `benchmarks/bare_server.py`", rows=serving.rows(serving.BARE), rounds=2),
        Variant(serving.MLFLOW, "`mlflow models serve`", rows=serving.rows(serving.MLFLOW), rounds=2),
    ),
    serving.row(serving.OURS, serving.EACH), most_rounds=3, unit="milliseconds",
)  # fmt: skip
SIMULATION = Comparison(
    "simulation", "A simulated run of 6 G rows",
    "5,723 parts through a real scheduler and two processes of eight threads that are started again when they die. A "
    "part only sleeps, 0.05 s times a log-normal factor; one in 200 takes 20 times as long; of one in 100 the first "
    "try is lost. `their sleep alone` is the sum of the sleep over the threads: what no scheduler could beat.",
    "workers",
    (Variant(workers.SIMULATED, "", rows=(workers.SIMULATED, workers.SLEEP), rounds=1),),
    workers.SLEEP, most_rounds=1,
)  # fmt: skip
ROWS = Comparison(
    "rows", "The whole flow over the number of rows, with workers",
    "`idxflow run --workers 1` and `--workers 2` with an empty store on synthetic archives, twelve for each split, "
    "or more of 50,000 training rows; the columns give the training rows, and there are a sixth as many test rows. "
    "One epoch, `--memory 64MiB`. The first step that workers compute, `decode`, waits for them to start. Two "
    "workers are compared with one whose run has one processor. Memory is the peak of the resident set. All runs of "
    "a size make the same weights.",
    "rows",
    tuple(Variant(rows.variant(size), "", rows=rows.rows(size), rounds=1) for size in rows.SIZES),
    rows.row(rows.ALL, rows.SIZES[0], rows.ALONE), most_rounds=1, columns=rows.columns(),
)  # fmt: skip

COMPARISONS = {
    comparison.name: comparison
    for comparison in (
        *(STARTING, COMMANDS, DECODING, ADDING, READING, STATISTICS, VALIDATION, TRAINING, CONVOLUTIONS),
        *(JOB, RERUN, ELSEWHERE, SPENDING, MEMORY, SPLITS, SEEDS, TUNE, SERVING, WORKERS, ROWS, SIMULATION),
    )
}
