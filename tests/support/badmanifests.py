"""Manifests that are refused, each with a part of the sentence that says why."""

from __future__ import annotations

GOOD = 'name = "mine"\nclasses = ["a", "b"]\nimage_shape = [20, 16]\n'
TWO = 'classes = ["a", "b"]\nimage_shape = [2, 2]\n'
HUGE = "9" * 5000
DIGEST = "0" * 64

MANIFESTS: dict[str, tuple[str, str]] = {
    "nothing": (
        "",
        "name to be a-z, 0-9, - and _, at most 64 characters, starting with a letter or digit; found nothing; add it",
    ),
    "not TOML": ("name = ", "expected a manifest in TOML; found "),
    "a web page": ("<!DOCTYPE html>\n<title>x</title>", "expected a manifest in TOML"),
    "JSON": ('{"name": "mine"}', "expected a manifest in TOML"),
    "a NUL": (GOOD + "\0", "expected a manifest in TOML"),
    "more than can be a manifest": (GOOD + "#" * 20_000_000, "found more than 16,777,216 bytes"),
    "brackets without end": (GOOD + "rows = " + "[" * 100_000, "expected a manifest in TOML"),
    "a number of 5,000 digits": (GOOD + f"label_column = {HUGE}", "expected a manifest in TOML"),
    "a hexadecimal number of 5,000 digits": (GOOD + f"label_column = 0x{HUGE}", "a number of thousands of digits"),
    "no name": (
        TWO,
        "name to be a-z, 0-9, - and _, at most 64 characters, starting with a letter or digit; found nothing",
    ),
    "an unknown key": (GOOD + "surprise = 1", "found surprise; remove it"),
    "a key over two lines": (GOOD + '"a\\nb" = 1', "found a·b; remove it"),
    "a key of 10,000 characters": (GOOD + "x" * 10_000 + " = 1", "xxx…; remove it"),
    "an unknown archive": (GOOD + "[archives.dev-images]", "found archives.dev-images"),
    "an unknown key of an archive": (GOOD + '[archives.train-images]\nmd5 = "x"', "found archives.train-images.md5"),
    "an unknown limit": (GOOD + "[limits]\nmax_fun = 1", "found limits.max_fun"),
    "a key twice": (GOOD + 'name = "again"', "expected a manifest in TOML; found Cannot overwrite"),
    "a table that is a number": (GOOD + "limits = 3", "limits to be a table; found 3"),
    "one class": ('name = "m"\nclasses = ["a"]\nimage_shape = [2, 2]', "2 to 256 different names"),
    "257 classes": (f'name = "m"\nclasses = {[str(n) for n in range(257)]}\nimage_shape = [2, 2]', "2 to 256"),
    "a class twice": ('name = "m"\nclasses = ["a", "a"]\nimage_shape = [2, 2]', "different names"),
    "a class with a control character": ('name = "m"\nclasses = ["a", "b\\u0000"]\nimage_shape = [2, 2]', "printable"),
    "classes that are numbers": ('name = "m"\nclasses = [0, 1]\nimage_shape = [2, 2]', "printable texts"),
    "a shape of one": ('name = "m"\nclasses = ["a", "b"]\nimage_shape = [2]', "height, width"),
    "a shape of zero": ('name = "m"\nclasses = ["a", "b"]\nimage_shape = [0, 2]', "height, width"),
    "a shape of truth": ('name = "m"\nclasses = ["a", "b"]\nimage_shape = [true, 2]', "height, width"),
    "a shape of 10,000": ('name = "m"\nclasses = ["a", "b"]\nimage_shape = [10000, 2]', "each from 1 to 4,096"),
    "a digest too short": (GOOD + '[archives.train-images]\nsha256 = "abc"', "64 hexadecimal digits"),
    "an MD5": (GOOD + f'[archives.train-images]\nsha256 = "{"d4" * 16}"', "64 hexadecimal digits"),
    "a digest of other letters": (GOOD + f'[archives.train-images]\nsha256 = "{"g" * 64}"', "64 hexadecimal digits"),
    "a negative size": (GOOD + "[archives.train-images]\nbytes = -1", "bytes to be an integer from 1 to"),
    "a size of 40 digits": (
        GOOD + f"[archives.train-images]\nbytes = {'9' * 40}",
        "an integer from 1 to 1,099,511,627,776",
    ),
    "a payload of 40 digits": (GOOD + f"[archives.test-labels]\npayload_bytes = {'9' * 40}", "payload_bytes to be a"),
    "rows of 40 digits": (GOOD + f"[rows]\ntrain = {'9' * 40}", "rows.train to be an integer from 1 to 4,294,"),
    "a path as file": (GOOD + '[archives.train-images]\nfile = "../x.gz"', "a file name without a folder"),
    "a hidden file": (GOOD + '[archives.train-images]\nfile = ".x.gz"', "a file name without a folder"),
    "a source with a NUL": (GOOD + 'source = "a\\u0000"', "source to be a folder"),
    "tests of behaviour without a test": (
        GOOD + "[behaviour]\nimages = 100",
        "shift, rotate, noise, brightness or must_be_right; found none; add one, or remove the table",
    ),
    "a shift by half a pixel": (
        GOOD + "[behaviour]\nshift = { pixels = 0.5, changed = 0.1 }",
        "behaviour.shift.pixels to be an integer from 1 to 4,096; found 0.5",
    ),
    "a rotation without a limit": (
        GOOD + "[behaviour.rotate]\ndegrees = 5",
        "behaviour.rotate.changed to be a number from 0 to 1; found nothing; add it",
    ),
    "noise with another key": (
        GOOD + "[behaviour]\nnoise = { sigma = 8, changed = 0.1 }",
        "expected one of changed, deviation; found behaviour.noise.sigma",
    ),
    "a test of behaviour that is a number": (
        GOOD + "[behaviour]\nbrightness = 10",
        "brightness to be a table; found 10",
    ),
    "an ftp mirror": ('mirrors = ["ftp://a.example/"]\n' + GOOD, "https:// or http://"),
    "a mirror with a password": (
        'mirrors = ["me:secret@a.example/"]\n' + GOOD,
        "https:// or http:// addresses; found another value; correct it",
    ),
    "a mirror that is a table": ('mirrors = [{url = "https://me:secret@a.example/"}]\n' + GOOD, "found another value;"),
    "a mirror that is a number": (f"mirrors = [0x{HUGE}]\n" + GOOD, "addresses; found another value; "),
    "a mirror that is no list": ('mirrors = "https://me:secret@a.example/"\n' + GOOD, "addresses; found https:…; "),
    "a mirror of an archive over two lines": (
        GOOD + '[archives.train-images]\nmirrors = ["https://a.example/\\nx"]',
        "archives.train-images.mirrors to be a list of https:// or http:// addresses; found https:…; ",
    ),
    "a mirror without digests": ('mirrors = ["https://a.example/"]\n' + GOOD, "idxflow manifest FOLDER"),
    "a share above one": (GOOD + "[limits]\nmax_leaked = 2", "a number from 0 to 1"),
    "a share that is no number": (GOOD + "[limits]\nmax_leaked = nan", "a number from 0 to 1"),
    "a pixel above 255": (GOOD + "[limits]\nmin_pixel_max = 256", "a number from 0 to 255"),
    "an unknown policy": (GOOD + '[gate]\npolicy = "best"', "better, not_worse, ask; found 'best'"),
    "a policy of no kind": (GOOD + "[gate]\npolicy = []", "gate.policy to be one of"),
    "alpha 0": (GOOD + "[gate]\nalpha = 0", "gate.alpha to be a number above 0 and below 0.5; found 0"),
    "alpha one half": (GOOD + "[gate]\nalpha = 0.5", "above 0 and below 0.5"),
    "alpha no number": (GOOD + "[gate]\nalpha = nan", "above 0 and below 0.5"),
    "alpha as text": (GOOD + '[gate]\nalpha = "0.05"', "gate.alpha to be a number"),
    "a margin of truth": (GOOD + "[gate]\nmargin = true", "gate.margin to be a number"),
    "a margin in points": (GOOD + "[gate]\nmargin = 5", "gate.margin to be a number from 0 to 1"),
    "a negative loss": (GOOD + "[gate]\nmax_class_loss = -0.1", "gate.max_class_loss to be a number from 0 to 1"),
    "a budget of nothing": (
        GOOD + "[gate]\nalpha_budget = 0",
        "gate.alpha_budget to be a number above 0 and below 0.5",
    ),
    "half a decision": (GOOD + "[gate]\nbudget_decisions = 0.5", "gate.budget_decisions to be an integer from 1"),
    "a border without width": (GOOD + "[gate]\nborderline = 1", "gate.borderline to be a number above 1"),
    "slices by what is not known": (
        GOOD + '[slices]\nby = ["size"]',
        "slices.by to be a list of different words from class, ink, contrast, roughness, slant, column N; found ['s",
    ),
    "slices by a class twice": (
        GOOD + '[slices]\nby = ["class", "class"]',
        "slices.by to be a list of different words",
    ),
    "slices by a column of labels that have one": (
        GOOD + '[slices]\nby = ["column 2"]',
        "expected label_column, because slices.by names column 2 of the label files; found none, so they have one",
    ),
    "slices by nothing": (
        GOOD + "[slices]\naccuracy = 0.9",
        "expected slices.by, because other keys of slices are set and do nothing without it; found none; add it, such",
    ),
    "one quantile": (GOOD + "[slices]\nquantiles = 1", "slices.quantiles to be an integer from 2 to 20; found 1"),
    "a floor of no class": (
        GOOD + '[slices]\nby = ["class"]\n[slices.floors]\n"class c" = 0.5',
        "expected slices.floors to name slices that slices.by makes, such as \"class a\"; found 'class c'; correct the",
    ),
    "a floor of what slices are not by": (
        GOOD + '[slices]\nby = ["ink"]\n[slices.floors]\n"class a" = 0.5',
        "such as \"ink quantile 1 of 4\"; found 'class a'",
    ),
    "a floor of a fifth quarter": (
        GOOD + '[slices]\nby = ["ink"]\n[slices.floors]\n"ink quantile 5 of 4" = 0.5',
        "found 'ink quantile 5 of 4'",
    ),
    "a floor of a column that is no number": (
        "label_column = 0\n" + GOOD + '[slices]\nby = ["column 1"]\n[slices.floors]\n"column 1 = x" = 0.5',
        "such as \"column 1 = 3\"; found 'column 1 = x'",
    ),
    "a floor in points": (
        GOOD + '[slices]\nby = ["class"]\n[slices.floors]\n"class a" = 90',
        "slices.floors to be a table of numbers from 0 to 1, by the name of a slice; found {'class a': 90}; correct it",
    ),
    "a floor of truth": (
        GOOD + '[slices]\nby = ["class"]\n[slices.floors]\n"class a" = true',
        "slices.floors to be a table of numbers from 0 to 1",
    ),
    "floors that are a number": (GOOD + "[slices]\nfloors = 0.5", "slices.floors to be a table of numbers from 0 to 1"),
    "an unknown key of the slices": (GOOD + "[slices]\nbeta = 0.1", "found slices.beta"),
    "an unknown key of the gate": (GOOD + "[gate]\nbeta = 0.1", "found gate.beta"),
    "a misspelt key": ('nmae = "mine"\n' + TWO, "found nmae (did you mean name?); remove it or correct its spelling"),
    "a misspelt limit": (GOOD + "[limits]\nmax_blanks = 1", "found limits.max_blanks (did you mean max_blank?); "),
    "no epochs": (GOOD + "[training]\nepochs = 0", "training.epochs to be an integer from 1 to 10,000; found 0; "),
    "a misspelt parameter": (GOOD + "[training]\nepoch = 1", "found training.epoch (did you mean epochs?); "),
    "memory without a unit": (
        GOOD + "[training]\nmemory = 5",
        "expected memory to be a size such as 500MB",
    ),
    "patience for nothing": (
        GOOD + "[training]\npatience = 2\nvalidation_fraction = 0",
        "expected held-out rows, because patience needs them",
    ),
    "momentum without effect": (
        GOOD + '[training]\noptimizer = "adam"\nmomentum = 0.5',
        "expected momentum with the optimizer sgd or rmsprop only; found it with adam",
    ),
    "rows as text": (GOOD + '[rows]\ntrain = "many"', "rows.train to be an integer from 1"),
    "rows of another split": (GOOD + "[rows]\ndev = 1", "found rows.dev"),
    "column -1": (GOOD + "label_column = -1", "label_column to be an integer from 0 to 1,023; found -1"),
    "one label too few": (
        GOOD + "labels = [1]",
        "labels to be a list of 2 different 32-bit integers, one per class; found 1;",
    ),
    "the same label twice": (
        GOOD + "labels = [1, 1]",
        "labels to be a list of different 32-bit integers, one per class; ",
    ),
    "a label of 33 bits": (
        GOOD + "labels = [0, 4294967296]",
        "labels to be a list of different 32-bit integers, one per class; ",
    ),
    "a label that is a text": (
        GOOD + 'labels = [0, "1"]',
        "labels to be a list of different 32-bit integers, one per class; ",
    ),
    "labels that are a number": (
        GOOD + "labels = 1",
        "labels to be a list of different 32-bit integers, one per class; found 1",
    ),
    "labels and their base": (GOOD + "labels = [1, 2]\nlabel_base = 1", "found both; remove one of them"),
    "labels and a base of 0": (GOOD + "labels = [1, 2]\nlabel_base = 0", "expected labels or label_base, which is"),
    "a base of 33 bits": (
        GOOD + "label_base = 4294967296",
        "label_base to be an integer from -2,147,483,648 to 2,147,483,647; found 4294967296",
    ),
    "a base whose last label has 33 bits": (
        GOOD + "label_base = 2147483647",
        "label_base to be at most 2,147,483,646, so that the label of the last class has 32 bits; found 2,147,483,647;",
    ),
    "a base of truth": (GOOD + "label_base = true", "label_base to be an integer from "),
    "transpose as a number": (GOOD + "transpose = 1", "transpose to be true or false; found 1"),
    "ink of a colour": (GOOD + 'ink = "blue"', "ink to be one of bright, dark; found 'blue'"),
    "ink that is misspelt": (GOOD + 'ink = "brigth"', "found 'brigth' (did you mean bright?); correct it"),
    "ink that is a list": (GOOD + 'ink = ["dark"]', "ink to be one of bright, dark; found ['dark']"),
    "a column of truth": (
        GOOD + "label_column = true",
        "label_column to be an integer from 0 to 1,023; found True",
    ),
    "a ZIP file without a digest": (
        GOOD + '[zip]\nfile = "a.zip"',
        "zip.sha256 to be a SHA-256 of 64 hexadecimal digits; found nothing; add it",
    ),
    "a ZIP file in a folder": (
        GOOD + f'[zip]\nfile = "a/b.zip"\nsha256 = "{DIGEST}"',
        "zip.file to be a file name without a folder; found 'a/b.zip'",
    ),
    "a folder outside the ZIP file": (
        GOOD + f'[zip]\nfile = "b.zip"\nfolder = ".."\nsha256 = "{DIGEST}"',
        "zip.folder to be the name of a folder; found '..'",
    ),
    "archives of a ZIP file without digests": (
        GOOD + f'[zip]\nfile = "b.zip"\nsha256 = "{DIGEST}"',
        "expected archives.train-images.sha256 or archives.train-images.payload_sha256 because it is read out of a ZIP",
    ),
    "a ZIP file at another kind of address": (
        GOOD + f'[zip]\nfile = "b.zip"\nsha256 = "{DIGEST}"\nmirrors = ["ftp://host/b.zip"]',
        "zip.mirrors to be a list of https:// or http:// addresses; found ftp:…",
    ),
}
