import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from extproc.routing.coefficients import FAMILIES, MILLITOKENS
from extproc.routing.prior import known_families, relative_variance
from extproc.routing.regressors import SCRIPT_TERMS, TERMS
from extproc.routing.scripts import BOX

ROOT = Path(__file__).parents[2]


def test_every_term_has_a_coefficient_for_every_family() -> None:
    assert set(MILLITOKENS) == set(TERMS)
    assert {len(row) for row in MILLITOKENS.values()} == {len(FAMILIES)}


def test_covariance_is_positive_definite_and_precision_its_inverse() -> None:
    prior = known_families()
    assert np.linalg.eigvalsh(prior.covariance).min() > 0
    assert prior.precision @ prior.covariance == pytest.approx(
        np.eye(len(TERMS)), abs=1e-6
    )


@pytest.mark.parametrize("favored", [None, 0, 7])
def test_a_mixture_of_families_has_the_precision_of_its_covariance(
    favored: int | None,
) -> None:
    families = known_families().families
    assert families is not None
    evidence = np.zeros(len(FAMILIES))
    if favored is not None:
        evidence[favored] = 4.0
    weights = families.weights(evidence)
    mixture = families.mixture(weights)
    mean, precision = families.mean_and_precision(weights)
    assert mean == pytest.approx(mixture.mean)
    largest = np.abs(mixture.precision).max()
    assert precision / largest == pytest.approx(mixture.precision / largest, abs=1e-9)


def test_leaving_a_family_out_changes_the_mean() -> None:
    template = TERMS.index("template")
    without = known_families({"llama3"}).mean[template]
    assert without < known_families().mean[template] - 1


@pytest.mark.parametrize(
    ("leave_out", "message"),
    [({"nobody"}, "nobody"), (set(FAMILIES[1:]), "at least 2")],
    ids=["unknown", "one left"],
)
def test_refuses_to_leave_out(leave_out: set[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        known_families(leave_out)


def test_long_prompts_vary_by_three_percent() -> None:
    assert relative_variance(1e9) == pytest.approx(0.03**2)
    assert relative_variance(10) > relative_variance(100)


def test_no_script_starts_at_less_than_nothing() -> None:
    for term in SCRIPT_TERMS:
        assert min(MILLITOKENS[term]) >= 0, term
    # The characters of boxes follow one another, so each is counted by both terms.
    boxes = zip(MILLITOKENS["sign after script"], MILLITOKENS[BOX], strict=True)
    assert min(after + box for after, box in boxes) > 0


def test_coefficients_are_what_the_fit_prints(corpora_path: Path) -> None:
    fit = ROOT / "tests" / "benchmarks" / "fit_coefficients.py"
    scripts = corpora_path.parent / "scripts"
    counts = scripts / "counts-shared.json.gz"
    arguments = [str(corpora_path), str(scripts), "--counts", str(counts)]
    printed = subprocess.run(
        [sys.executable, str(fit), *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    ).stdout
    rows = re.findall(r'"(.+)": \((.+)\),', printed)
    fitted = {name: tuple(map(int, row.split(", "))) for name, row in rows}
    assert fitted.keys() == MILLITOKENS.keys()
    for name, row in MILLITOKENS.items():
        # Another BLAS may round the last digit differently.
        assert fitted[name] == pytest.approx(row, abs=2), name
