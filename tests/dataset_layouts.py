"""Small data sets laid out as the originals are distributed; photos of 40 x 30 made on the spot."""

import json
import pickle

import numpy as np
import scipy.io

from rmacjax.preprocessing import encode_jpeg

HEIGHT, WIDTH = 30, 40


def photo(path, seed=0, height=HEIGHT, width=WIDTH):
    """Write a JPEG of noise; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path.write_bytes(encode_jpeg(pixels))
    return str(path)


# Two queries for one landmark, one for another; the first box has fractions, the second reaches
# outside, and all queries are among their own positives.
NAMES = ["clock_000002", "gate_000001", "clock_000001", "sky_000001", "gate_000002"]
CLOCK = (["clock_000001"], ["clock_000002"], ["sky_000001"])
QUERIES = [
    ("clock_1", "clock_000001", [3.2, 4.9, 20.1, 25.0], *CLOCK),
    ("clock_2", "clock_000002", [-5.0, -1.5, 99.0, 30.0], *CLOCK),
    ("gate_1", "gate_000001", [1.0, 2.0, 3.0, 4.0], [], ["gate_000001", "gate_000002"], []),
]
BOXES = {"clock_1": (4, 3, 25, 21), "clock_2": (0, 0, 30, 40), "gate_1": (2, 1, 4, 3)}

# The revisited protocol: queries apart; easy, hard and junk.
REVISITED_QUERIES = [
    ("all_000009", [3.2, 4.9, 20.1, 25.0], ["clock_000001"], ["clock_000002"], ["sky_000001"]),
    ("all_000008", [-5.0, -1.5, 99.0, 30.0], [], ["gate_000001"], []),
]


def write_texts(folder, *, prefix="oxc1_", queries=QUERIES):
    """Write the four text files of each query."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image, box, good, ok, junk in queries:
        edges = " ".join(map(str, box))
        (folder / f"{name}_query.txt").write_text(f"{prefix}{image} {edges}\n")
        for kind, names in (("good", good), ("ok", ok), ("junk", junk)):
            (folder / f"{name}_{kind}.txt").write_text("".join(f"{n}\n" for n in names))


def classic_content():
    """Return the same as `write_texts` in the form of gnd_NAME files."""
    gnd = [
        {
            "bbx": box,
            "ok": [NAMES.index(name) for name in (*good, *ok)],
            "junk": [NAMES.index(name) for name in junk],
        }
        for _, _, box, good, ok, junk in QUERIES
    ]
    return {"imlist": NAMES, "qimlist": [query[1] for query in QUERIES], "gnd": gnd}


def revisited_content():
    """Return a ground truth of the revisited protocol."""
    gnd = [
        {"bbx": box} | {
            key: [NAMES.index(name) for name in names]
            for key, names in (("easy", easy), ("hard", hard), ("junk", junk))
        }
        for _, box, easy, hard, junk in REVISITED_QUERIES
    ]  # fmt: skip
    return {"imlist": NAMES, "qimlist": [query[0] for query in REVISITED_QUERIES], "gnd": gnd}


def write_indexed(file, content, *, protocol=2):
    """Write gnd_NAME.pkl (numbers as arrays), .mat (counted from 1, as MATLAB does) or .json."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".json":
        file.write_text(json.dumps(content))
    elif file.suffix == ".pkl":
        gnd = [
            {key: value if key == "bbx" else np.asarray(value) for key, value in entry.items()}
            for entry in content["gnd"]
        ]
        file.write_bytes(pickle.dumps(content | {"gnd": gnd}, protocol=protocol))
    else:
        write_mat(file, content)


def write_mat(file, content, *, sized=False):
    """Write gnd_NAME.mat; `sized`: boxes as left, top, width and height, as INSTRE has them."""

    def cells(names):
        return np.asarray([*names, None], object)[:-1][:, None]

    keys = list(content["gnd"][0])
    gnd = np.zeros((len(content["gnd"]), 1), [(key, object) for key in keys])
    for number, entry in enumerate(content["gnd"]):
        for key in keys:
            values = np.asarray(entry[key], np.float64)
            if key == "bbx" and sized:
                values = np.concatenate([values[:2], values[2:] - values[:2]])
            gnd[key][number, 0] = (values if key == "bbx" else (values + 1).astype(np.uint16))[None]
    variables = {"imlist": cells(content["imlist"]), "gnd": gnd}
    if "qimlist" in content and not set(content["qimlist"]) <= set(content["imlist"]):
        variables["qimlist"] = cells(content["qimlist"])
    else:
        numbers = [content["imlist"].index(name) + 1 for name in content["qimlist"]]
        variables["qidx"] = np.asarray(numbers, np.uint16)[:, None]
    scipy.io.savemat(file, variables, do_compression=True)


def holidays(root):
    """Three scenes: of four, two and two photos."""
    names = ["100000", "100001", "100002", "100003", "100100", "100101", "149900", "149901"]
    for seed, name in enumerate(names):
        photo(root / "jpg" / f"{name}.jpg", seed)
    return names
