"""A torso from the middle of the chest to below the kidneys, made of implicit shapes.

World: x to the patient's left, y to posterior, z to superior, in mm; the spine stands near
x = 0, y = 62. The liver lies on the patient's right (x < 0), spleen and stomach on the left.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from phantoms.canvas import (
    Array,
    Canvas,
    Shape,
    both,
    either,
    ellipsoid,
    outside,
    smooth_noise,
    tube,
    turned,
)

NAMES = {
    1: "liver",
    2: "spleen",
    3: "kidney right",
    4: "kidney left",
    5: "aorta",
    6: "inferior vena cava",
    7: "gallbladder",
    8: "stomach",
    9: "lung right",
    10: "lung left",
    11: "heart",
    12: "vertebrae",
    13: "liver lesion",
    14: "pancreas",
}
VALUE = {name: value for value, name in NAMES.items()}


def body(x: Array, y: Array, z: Array, inset: float = 0.0) -> Array:
    """Return the skin's implicit value, or that of a surface ``inset`` mm below it."""
    wide = 168 - 10 * np.cos((z - 60) / 75) - inset
    deep = 112 - 6 * np.cos((z - 40) / 80) - inset * (1.0 + 0.35 * (y < 0))
    groove = 5 * np.exp(-((x / 26) ** 2)) * (y > 0)
    front = y + groove
    return (np.abs(x / wide) ** 2.5 + np.abs(front / deep) ** 2.5) ** (1 / 2.5) - 1.0


def cavity(inset: float) -> Shape:
    """Return the shape bounded by the surface ``inset`` mm below the skin."""
    return Shape(lambda x, y, z: 100 * body(x, y, z, inset))


def dome(x: Array, y: Array) -> Array:
    """Return the height of the diaphragm."""
    right = 176 - 62 * ((x + 78) / 88) ** 2 - 58 * (np.abs(y + 12) / 92) ** 2.4
    left = 160 - 62 * ((x - 80) / 88) ** 2 - 58 * (np.abs(y + 8) / 92) ** 2.4
    middle = 150 - 50 * (y / 90) ** 2 - (np.maximum(np.abs(x) - 40, 0) / 6) ** 2
    return np.maximum.reduce([right, left, middle])


def above_diaphragm(lift: float) -> Shape:
    """Return the space more than ``lift`` mm above the diaphragm."""
    return Shape(lambda x, y, z: dome(x, y) + lift - z)


def below_diaphragm(drop: float) -> Shape:
    """Return the space more than ``drop`` mm below the diaphragm."""
    return Shape(lambda x, y, z: z - dome(x, y) + drop)


def mediastinum(x: Array, y: Array, z: Array) -> Array:
    """Return the middle of the chest, wider to the front and to the left."""
    return np.abs(x - 6 + 0.08 * y) - (34 + 0.12 * np.maximum(-y, 0))


def ribs(x: Array, y: Array, z: Array) -> Array:
    """Return ribs that run down from the spine to the front and end in the costal arch."""
    wall = 100 * body(x, y, z, 29)
    forward = 0.5 - 0.5 * y / np.sqrt(x * x + y * y + 1)
    height = z + 78 * forward
    turn = np.mod(height, 27) - 13.5
    arch = np.maximum(forward - np.clip((height - 60) / 160, 0.12, 0.9), 14 / 100 - np.abs(x) / 100)
    return np.maximum(np.sqrt((wall / 4.2) ** 2 + (turn / 6.5) ** 2) - 1.0, 12 * arch)


def liver() -> Shape:
    """Return the liver: a right lobe under the dome, a left lobe that tapers across."""
    right = turned(ellipsoid((-82, -2, 118), (76, 84, 66)), (-82, -2, 118), 12, "y")
    left = turned(ellipsoid((-8, -52, 134), (82, 36, 32)), (-8, -52, 134), -10, "y")
    fissure = turned(ellipsoid((-22, -5, 96), (34, 46, 44)), (-22, -5, 96), 20, "z")
    return both(either(right, left), outside(fissure), below_diaphragm(5), cavity(40))


def paint_walls(canvas: Canvas, tone: Mapping[str, float]) -> None:
    """Paint skin, fat, muscles, ribs and spine."""
    canvas.paint(cavity(0), tone["skin"])
    canvas.paint(cavity(2.5), tone["fat"])
    canvas.paint(cavity(17), tone["muscle"])
    canvas.paint(both(cavity(34), below_diaphragm(0)), tone["fat"])
    canvas.paint(both(cavity(36), above_diaphragm(0)), tone["fat"])
    midline = Shape(lambda x, y, z: 4.0 - np.abs(x))
    back = either(ellipsoid((-34, 78, 120), (31, 23, 900)), ellipsoid((34, 78, 120), (31, 23, 900)))
    canvas.paint(both(back, midline), tone["muscle"])
    for side in (-1, 1):
        psoas = ellipsoid((side * 36, 55, -40), (17, 17, 105))
        canvas.paint(psoas, tone["muscle"])
        crus = tube([(side * 16, 26, 40), (side * 18, 30, 130)], 5)
        canvas.paint(crus, tone["muscle"])
    canvas.paint(Shape(ribs), tone["bone"], softness=2.5)
    canvas.paint(ellipsoid((0, -90, 215), (19, 6, 40)), tone["bone"])
    paint_spine(canvas, tone)


def paint_spine(canvas: Canvas, tone: Mapping[str, float]) -> None:
    """Paint vertebral bodies with discs between them, arch, processes and spinal canal."""
    column = ellipsoid((0, 52, 120), (21, 17, 900))

    def vertebra(x: Array, y: Array, z: Array) -> Array:
        waist = 2.2 * np.cos(2 * np.pi * z / 30)
        return np.maximum(24 * column(x, y, z) - waist, np.abs(np.mod(z, 30) - 15) - 12.3)

    def marrow(x: Array, y: Array, z: Array) -> Array:
        return vertebra(x, y, z) + 2.4

    def arch(x: Array, y: Array, z: Array) -> Array:
        level = np.abs(np.mod(z, 30) - 16) - 8
        ring = np.abs(np.hypot(x / 1.15, y - 77) - 12) - 3.2
        spine = np.maximum(np.abs(x) - 3, np.abs(y - 90) - 8)
        wing = np.maximum(np.abs(y - 80 - 0.15 * np.abs(x)) - 4, np.abs(np.abs(x) - 27) - 13)
        return np.maximum(np.minimum(np.minimum(ring, spine), wing), level)

    near = ((-45.0, 25.0, -np.inf), (45.0, 115.0, np.inf))
    canal = ellipsoid((0, 77, 120), (11, 9, 900))
    canvas.paint(column, tone["disc"])
    label = VALUE["vertebrae"]
    canvas.paint(Shape(arch, *near), tone["bone"] * 0.8, label=label)
    canvas.paint(Shape(vertebra, *near), tone["bone"], label=label)
    canvas.paint(Shape(marrow, *near), tone["marrow"])
    canvas.paint(canal, tone["canal"])
    canvas.erase(canal)
    canvas.paint(ellipsoid((0, 77, 120), (5.5, 4.5, 900)), tone["cord"])


def paint_chest(canvas: Canvas, tone: Mapping[str, float], rng: np.random.Generator) -> None:
    """Paint lungs with vessels, and the heart."""
    lungs = both(cavity(37), above_diaphragm(3), outside(Shape(mediastinum)))
    mottled = smooth_noise(rng, canvas.image.shape, canvas.grid.steps_zyx, 14, 14)
    for side, name in ((-1, "lung right"), (1, "lung left")):
        half = Shape(lambda x, y, z, s=side: -s * x)
        canvas.paint(both(lungs, half), tone["lung"] + mottled * tone["mottle"], label=VALUE[name])
        for _ in range(60):
            root = np.array([side * 40.0, rng.uniform(0, 25), rng.uniform(205, 245)])
            end = np.array(
                [side * rng.uniform(55, 125), rng.uniform(-60, 60), rng.uniform(130, 250)]
            )
            bend = (root + end) / 2 + rng.uniform(-14, 14, 3)
            vessel = both(tube([tuple(root), tuple(bend)], rng.uniform(1.8, 3.2)), lungs)
            canvas.paint(vessel, tone["vessel"])
            canvas.paint(
                both(tube([tuple(bend), tuple(end)], rng.uniform(1.0, 1.8)), lungs), tone["vessel"]
            )
    heart = turned(ellipsoid((26, -32, 226), (60, 44, 56)), (26, -32, 226), 30, "z")
    above = both(heart, above_diaphragm(1), cavity(38))
    canvas.paint(above, tone["myocardium"], label=VALUE["heart"])
    for centre, radii in (((44, -22, 226), (26, 20, 34)), ((2, -42, 228), (26, 18, 34))):
        canvas.paint(both(ellipsoid(centre, radii), above_diaphragm(9)), tone["blood"])


def paint_kidney(canvas: Canvas, tone: Mapping[str, float], side: int, height: float) -> None:
    """Paint a kidney: bright cortex, pyramids, renal sinus of fat."""
    centre = (side * 68.0, 46.0, height)
    whole = turned(ellipsoid(centre, (29, 25, 54)), centre, side * 12, "y")
    hilum = ellipsoid((side * 44.0, 36.0, height), (17, 13, 17))
    shape = both(whole, outside(hilum))
    name = "kidney right" if side < 0 else "kidney left"
    fat = turned(ellipsoid(centre, (37, 32, 62)), centre, side * 12, "y")
    canvas.paint(fat, tone["fat"])
    canvas.paint(shape, tone["cortex"], label=VALUE[name])
    for angle in range(0, 360, 45):
        for level in (-28, -9, 10, 28):
            reach = 15.5 * np.sqrt(1 - (level / 54) ** 2)
            pyramid = ellipsoid(
                (
                    centre[0] + reach * np.cos(np.radians(angle + level)),
                    centre[1] + reach * 0.85 * np.sin(np.radians(angle + level)),
                    height + level,
                ),
                (5, 5, 7),
            )
            canvas.paint(both(pyramid, whole), tone["medulla"], softness=3.0)
    sinus = ellipsoid((side * 58.0, 43.0, height), (13, 8, 24))
    canvas.paint(sinus, tone["fat"])
    vein = tube([(side * 60, 42, height), (side * 14, 26, height + 10)], 5)
    canvas.paint(vein, tone["vein"])


def paint_vessels(canvas: Canvas, tone: Mapping[str, float]) -> None:
    """Paint aorta and inferior vena cava, calcium in the aortic wall."""
    run = [(13, 24, -10), (12, 22, 60), (14, 25, 140), (22, 38, 200), (26, 46, 260)]
    canvas.paint(tube(run, 11.5), tone["artery"], label=VALUE["aorta"])
    canvas.paint(tube([(22, 30, 34), (21, 28, 48)], 1.8), tone["calcium"])
    cava = [(-19, 22, -10), (-20, 18, 70), (-20, 10, 130), (-16, 0, 172)]
    canvas.paint(tube(cava, 12), tone["vein"], label=VALUE["inferior vena cava"])


def paint_upper_abdomen(canvas: Canvas, tone: Mapping[str, float]) -> None:
    """Paint liver with vessels and lesion, gallbladder, spleen, stomach, pancreas."""
    canvas.paint(liver(), tone["liver"], label=VALUE["liver"])
    for end in ((-90, -40, 150), (-110, 10, 148), (-70, 35, 152)):
        middle = ((end[0] - 20) / 2, end[1] / 2, 158)
        canvas.paint(both(tube([(-22, 4, 160), middle, end], 3.2), liver()), tone["vein"])
    for end in ((-115, -10, 118), (-100, 40, 100), (-60, -50, 128)):
        canvas.paint(both(tube([(-34, 2, 112), (-58, 0, 116), end], 3.4), liver()), tone["portal"])
    lesion = both(ellipsoid((-118, 22, 128), (13, 11, 12)), liver())
    canvas.paint(lesion, tone["lesion"], label=VALUE["liver lesion"], softness=3.0)
    bladder = turned(ellipsoid((-56, -38, 86), (15, 17, 30)), (-56, -38, 86), 25, "x")
    canvas.paint(bladder, tone["wall"])
    canvas.paint(
        turned(ellipsoid((-56, -38, 86), (13, 15, 28)), (-56, -38, 86), 25, "x"),
        tone["bile"],
        label=VALUE["gallbladder"],
    )
    spleen = turned(ellipsoid((110, 36, 116), (30, 52, 50)), (112, 36, 116), -28, "z")
    dent = ellipsoid((74, 14, 112), (22, 28, 36))
    canvas.paint(
        both(spleen, outside(dent), below_diaphragm(4), cavity(40)),
        tone["spleen"],
        label=VALUE["spleen"],
    )
    paint_stomach(canvas, tone)
    pancreas = tube([(-18, -18, 78), (8, -22, 92), (42, -2, 104), (76, 18, 108)], 11)
    canvas.paint(pancreas, tone["pancreas"], label=VALUE["pancreas"])


def paint_stomach(canvas: Canvas, tone: Mapping[str, float]) -> None:
    """Paint wall, content and the gas that rises to the front of a patient on the back."""
    fundus = ellipsoid((66, -22, 132), (38, 38, 34))
    antrum = tube([(70, -40, 116), (44, -58, 84), (4, -58, 78)], 19)
    outer = both(either(fundus, antrum), below_diaphragm(4), cavity(40))
    hollow = either(
        ellipsoid((66, -22, 132), (34, 34, 30)),
        tube([(70, -40, 116), (44, -58, 84), (6, -58, 78)], 15.5),
    )
    inner = both(hollow, below_diaphragm(8), cavity(44))
    level = Shape(lambda x, y, z: y + 45)
    canvas.paint(outer, tone["wall"], label=VALUE["stomach"])
    canvas.paint(inner, tone["content"])
    canvas.paint(both(inner, level), tone["gas"])


def paint_bowel(canvas: Canvas, tone: Mapping[str, float], rng: np.random.Generator) -> None:
    """Paint colon with stool and gas at the flanks and loops of small bowel in front."""
    for x, radius in ((-108, 23), (112, 20)):
        bowel = [(x, 0, -10), (x * 1.04, 8, 30), (x * 0.97, 2, 62)]
        canvas.paint(both(tube(bowel, radius), cavity(40)), tone["wall"])
        canvas.paint(both(tube(bowel, radius - 3), cavity(43)), tone["stool"])
        gas = both(tube(bowel, radius - 4), Shape(lambda x, y, z: y + 6), cavity(44))
        canvas.paint(gas, tone["gas"])
    for _ in range(44):
        start = np.array([rng.uniform(-84, 84), rng.uniform(-76, 2), rng.uniform(-5, 62)])
        path = [tuple(start + rng.uniform(-18, 18, 3) * (1, 0.6, 0.7) * k) for k in range(3)]
        radius = rng.uniform(9, 13)
        canvas.paint(both(tube(path, radius), cavity(41)), tone["wall"])
        canvas.paint(both(tube(path, radius - 3), cavity(44)), tone["chyme"] + rng.uniform(-12, 12))


def draw(canvas: Canvas, tone: Mapping[str, float], seed: int) -> None:
    """Paint everything, back to front."""
    rng = np.random.default_rng(seed)
    paint_walls(canvas, tone)
    paint_chest(canvas, tone, rng)
    paint_bowel(canvas, tone, rng)
    paint_kidney(canvas, tone, -1, 58)
    paint_kidney(canvas, tone, 1, 70)
    paint_vessels(canvas, tone)
    paint_upper_abdomen(canvas, tone)
