"""Every kernel compiles to code that is as exact as was asked, and code that is not is found."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("triton")

from septr_fast.kernels import launch, tables
from trust.machine import compiling, machine_code, rows
from trust.machine.machine_code import Asked
from trust.outcome import ShortForm
from trust.parts import compilation

from septr_fast.tuning.kernel_report import DEFAULT, Case

KERNELS = 5
"""That the short form compiles."""


def test_compilation(short_form: ShortForm) -> None:
    outcome = short_form(compilation)
    assert outcome.wrong == []
    assert outcome.tried == KERNELS
    assert outcome.figures["launches whose contraction was checked"] > 1000
    assert outcome.figures["cases of model, dtype and architecture"] == 4


@pytest.fixture(scope="module")
def planted() -> dict[str, list[str]]:
    """What is found in each planted kernel and launch."""
    told = list(compilation.judgements([], module="trust.machine.planted_compilation"))
    assert all("fault" in one for one in told), told
    return {one["fault"]: one["wrong"] for one in told}


FAULTS = {
    "contracted across lanes": "products contracted with another lane's sum",
    "precision dropped": "a product in tf32, expected ieee",
    "rounded operands": "a product of f16 and f16 summed up in f32",
    "half sums": "summed up in f16",
    "approximate": "tanh.approx.f32: not exact",
    "half arithmetic": "arithmetic outside of float32",
    "rounded apart": "cannot be contracted",
    "spilling": "instructions spill registers",
    "contraction unsaid": "enable_fp_fusion: expected True, got None",
    "contraction barred": "enable_fp_fusion: expected True, got False",
    "contraction barred, compiled": "where contraction is barred",
}


@pytest.mark.parametrize(("fault", "found"), FAULTS.items(), ids=FAULTS)
def test_planted_faults_are_found(planted: dict[str, list[str]], fault: str, found: str) -> None:
    assert any(found in wrong for wrong in planted[fault]), planted[fault]


def test_planted_kernels_without_a_fault_pass(planted: dict[str, list[str]]) -> None:
    sound = {fault: wrong for fault, wrong in planted.items() if fault.startswith("none")}
    assert sound == {"none": [], "none, float16": []}
    assert set(planted) == {*sound, *FAULTS}


DOT = "%y = tt.dot %x, %x, %zero{} : tensor<16x16xf32> * tensor<16x16xf32> -> tensor<16x16xf32>\n"
HALVES = DOT.format("").replace("xf32> *", "xf16> *").replace("xf32> ->", "xf16> ->")
MMA = "\tmma.sync.aligned.m16n8k8.row.col.f32.{0}.{0}.f32 {{ %r1 }}, {{ %r2 }};\n"
SHUFFLED = "\tshfl.sync.bfly.b32 %r2, %r1, 8, 31, -1;\n\tmov.b32 %f3, %r2;\n\tfma.rn.f32 %f5, %f1, %f2, {};\n"
WIDENED = "%s = arith.extf %a : tensor<16x16xf16> to tensor<16x16xf32>\n"
HALF_SUM = "%s = arith.addf %a, %b : tensor<16x16xf16>\n"
BY_ONE = "\tmov.b32 %r4, {};\n\tfma.rn.bf16x2 %r1, %r2, %r4, %r3;\n"
CODE = [
    ("sound", DOT.format(""), "\tfma.rn.f32 %f1, %f2;\n\tadd.f32 %f1, %f2;\n", {}, "float32", None),
    (
        "sound, 16 bits",
        HALVES,
        "\twgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 %r;\n",
        {"HGMMA": 1},
        "float16",
        None,
    ),
    ("unreadable", "%y = tt.dot_scaled %x", "", {}, "float32", "of which 0 can be read"),
    ("other dtype", HALVES, MMA.format("bf16"), {"HMMA": 1}, "float16", ".f32.bf16.bf16.f32 for 1 products"),
    ("tensor cores for nothing", "", MMA.format("f16"), {"HMMA": 1}, "float16", "for 0 products"),
    ("no tensor cores", HALVES, "", {}, "float16", "no tensor-core instruction"),
    ("machine code alone", DOT.format(""), "", {"HMMA": 4}, "float32", "in the machine code: {'HMMA': 4}"),
    ("rounding to TF32", "", "\tcvt.rna.tf32.f32 %r1, %f1;\n", {}, "float32", "TF32 in the code"),
    ("product in TF32", DOT.format(", inputPrecision = tf32"), "", {}, "float32", "a product in tf32, expected ieee"),
    ("contracted across lanes", "", SHUFFLED.format("%f3"), {}, "float32", "1 products contracted"),
    ("contracted with its own", "", SHUFFLED.format("%f4"), {}, "float32", None),
    ("double", "", "\t@%p1 fma.rn.f64 %d1, %d2;\n", {}, "float32", "1 fma.rn.f64: arithmetic outside of float32"),
    ("sum of halves", WIDENED, "\tadd.f16x2 %r1, %r2, %r3;\n\tadd.rn.bf16 %rs1, %rs2, %rs3;\n", {}, "float16", None),
    ("sum of halves in float32", "", "\tadd.f16x2 %r1, %r2, %r3;\n", {}, "float32", "1 add.f16x2: arithmetic outside"),
    ("sum of halves as written", HALF_SUM, "\tadd.f16x2 %r1, %r2, %r3;\n", {}, "float16", "arithmetic outside"),
    ("sum by a product with one", "", BY_ONE.format(1065369472), {}, "bfloat16", None),
    ("product of halves", "", BY_ONE.format(1065369473), {}, "bfloat16", "1 fma.rn.bf16x2: arithmetic outside"),
    ("unknown product", "", "\tfma.rn.bf16 %rs1, %rs2, %rs3, %rs4;\n", {}, "bfloat16", "arithmetic outside"),
    ("difference of halves", "", "\tsub.f16 %rs1, %rs2, %rs3;\n", {}, "float16", "arithmetic outside"),
    ("fast square root", "", "\tsqrt.approx.f32 %f1, %f2;\n", {}, "float32", "sqrt.approx.f32: not exact"),
    ("flushed", "", "\tadd.ftz.f32 %f1, %f2;\n", {}, "float32", "add.ftz.f32: not exact"),
    ("flushed outside of functions", "", "\tfma.rn.ftz.f32 %f1;\n", {}, "float32", "fma.rn.ftz.f32: not exact"),
    ("flushed within functions", "%p = math.erf %h", "\tfma.rn.ftz.f32 %f1;\n", {}, "float32", None),
]


@pytest.mark.parametrize(
    ("ttir", "ptx", "cores", "dtype", "found"), [case[1:] for case in CODE], ids=[c[0] for c in CODE]
)
def test_rules(ttir: str, ptx: str, cores: dict[str, int], dtype: str, found: str | None) -> None:
    faults = list(machine_code.faults({"ttir": ttir, "ptx": ptx}, cores, Asked(dtype, True)))
    assert len(faults) >= (found is not None)
    assert any(found in fault for fault in faults) if found else faults == []


PRODUCT = " : tensor<16x16xf16> * tensor<16x16xf16> -> tensor<16x16xf32>"
LOOP = """
%out = scf.for %i = %c0 to %c9 step %c1 iter_args(%sum = %zero) {
  %p = scf.if %masked -> (tensor<16x16xf32>) {
  } else {
  }
  %first = tt.dot %x, %y, %sum PRODUCT
  %second = tt.dot %z, %y, ADDED PRODUCT
}
%after = tt.dot %x, %y, %out PRODUCT
""".replace(" PRODUCT", PRODUCT)


@pytest.mark.parametrize(("added", "count"), [("%first", 1), ("%zero", 0), ("%other", 0)])
def test_products_added_to_one_another_in_a_loop_are_wrong_for_blackwell(added: str, count: int) -> None:
    def faults(ptx: str) -> list[str]:
        asm, asked = {"ttir": LOOP.replace("ADDED", added), "ptx": ptx}, Asked("float16", True)
        return [fault for fault in machine_code.faults(asm, {"UTCHMMA": 1}, asked) if "another product" in fault]

    assert len(faults("\ttcgen05.mma.cta_group::1.kind::f16 [%r1];\n")) == count
    assert faults(MMA.format("f16")) == []


@pytest.mark.parametrize("name", ["add.f32", "mul.f32x2", "sub.f32"])
def test_rounding_tells_whether_contraction_is_barred(name: str) -> None:
    operation, dtype = name.split(".")
    for code, wrong_with_fusion in ((f"\t{name} %f1;\n", False), (f"\t{operation}.rn.{dtype} %f1;\n", True)):
        for fusion in (True, False):
            faults = list(machine_code.faults({"ttir": "", "ptx": code}, {}, Asked("float32", fusion)))
            assert len(faults) == (fusion == wrong_with_fusion)


def test_a_product_that_leaves_its_precision_open_is_found() -> None:
    source = "y = tl.dot(a, b, input_precision=P)\nz = tl.dot(a, tl.trans(b), acc)\n"
    assert machine_code.unsaid_precision(source, "kernel.py") == ["kernel.py:2: tl.dot without input_precision"]


def test_sums_of_products_are_told_by_their_source() -> None:
    source = "a = tl.sum(x * y, 1)\nb = tl.sum(x, 1) * y\nc = sum_of_products(x, y, 1)\n"
    assert machine_code.plain_sums(source, "kernel.py") == ["kernel.py:1: tl.sum(x * y, 1), not by sum_of_products"]


def test_a_program_that_ends_before_its_time_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    (told,) = compilation.judgements(["short"])
    assert told["wrong"] == ["trust.machine.compiling ended with status 1: no message"]


def test_rows_of_the_tables_that_no_model_uses_are_found() -> None:
    with rows.noted() as used:
        launch.lookup("normalize", 90, 2, 64)
    assert len(used & rows.of_kernels()) == 1
    assert len(rows.unused(used)) == len(rows.of_kernels()) - 1
    assert any(line.startswith("mlp_bwd on sm_100, 4 bytes per value") for line in rows.unused(used))


def test_sm_89_takes_the_tables_of_sm_86() -> None:
    """But for how many rows go at a time; so its kernels are specialised as that one's are."""
    of_kernels = [row for row in tables.TABLES if row not in tables.CHUNK]
    assert not [row.kernel for row in of_kernels if (86 in row.archs) != (89 in row.archs)]
    assert not compiling.is_first_of_kind(Case(DEFAULT, "bfloat16", 89))
