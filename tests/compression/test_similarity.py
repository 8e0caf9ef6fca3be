"""Duplicates, distances and dendrograms of rows: the same answers as the slow ways give."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import AgglomerativeClustering

from redlab.compression import similarity
from redlab.compression.similarity import (
    clusters_at,
    count_duplicates,
    dendrogram,
    exact_duplicates,
    pairwise_distances,
)


def slow_duplicates(rows):
    return [next(j for j in range(len(rows)) if np.array_equal(rows[i], rows[j])) for i in range(len(rows))]


def random_rows(n=40, d=12, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 30), st.integers(1, 20), st.integers(1, 3), st.integers(0, 10**6))
def test_duplicates_are_those_of_comparing_every_pair(n, d, values, seed):
    rows = np.random.default_rng(seed).integers(-values, values, (n, d)).astype(np.float32)
    rows[rows == 0] *= np.random.default_rng(seed + 1).choice([-1, 1], (rows == 0).sum())
    assert exact_duplicates(rows).tolist() == slow_duplicates(rows)


def test_the_two_zeros_are_equal():
    assert exact_duplicates(np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, -1.0]])).tolist() == [0, 0, 2]


def test_rows_of_equal_sums_and_probes_are_told_apart():
    rows = np.eye(40, 4000, 100)
    assert exact_duplicates(np.concatenate([rows, rows])).tolist() == [*range(40)] * 2


def test_sums_that_overflow_hide_nothing():
    rows = np.full((3, 8), 3e38, np.float32)
    rows[1, -1] = 1
    assert exact_duplicates(rows).tolist() == [0, 1, 0]


@pytest.mark.parametrize("function", [exact_duplicates, pairwise_distances, dendrogram])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_are_refused_with_the_row(function, bad):
    rows = random_rows()
    rows[7, 3] = bad
    with pytest.raises(ValueError, match="row 7"):
        function(rows)


@pytest.mark.parametrize("rows", [np.zeros((0, 3)), np.zeros(3), np.zeros((2, 2), int)])
def test_what_is_no_matrix_of_floats_is_refused(rows):
    with pytest.raises(ValueError, match="matrix of floats"):
        exact_duplicates(rows)


@pytest.mark.parametrize(("dtype", "precision"), [(np.float32, 1e-3), (np.float64, 1e-7)])
def test_distances_are_those_of_scipy_even_where_gram_matrices_cancel(dtype, precision):
    centre = 100 * random_rows(1, 300)
    rows = np.concatenate([random_rows(150, 300), centre + 1e-3 * random_rows(150, 300, seed=1)]).astype(dtype)
    rows[200] = rows[20]
    exact = squareform(pdist(rows.astype(np.float64)))
    distances = pairwise_distances(rows)
    assert distances.dtype == dtype
    assert np.array_equal(distances, distances.T)
    assert distances[200, 20] == 0
    assert not distances.diagonal().any()
    assert np.allclose(distances, exact, rtol=precision, atol=0)


@pytest.mark.parametrize("scale", [1e-35, 1e35])
def test_distances_of_tiny_and_of_huge_rows(scale):
    rows = random_rows(dtype=np.float32)
    scaled = pairwise_distances((rows * np.float32(scale)).astype(np.float32))
    assert np.allclose(scaled / scale, pairwise_distances(rows), rtol=1e-3)


@pytest.mark.parametrize("linkage", ["complete", "single"])
def test_clusters_are_those_of_scikit_learn(linkage):
    rows = random_rows(60, 5)
    tree = dendrogram(rows, linkage)
    for gone in (0, 1, 7, 30, 58, 59):
        peer = AgglomerativeClustering(60 - gone, linkage=linkage).fit_predict(rows)
        mine = clusters_at(tree, gone)
        assert len(set(mine)) == 60 - gone
        assert len(set(zip(mine, peer, strict=True))) == 60 - gone, "the same partition"


def test_exactly_so_many_are_gone_and_identical_rows_always():
    rows = random_rows(30)
    rows[20:25] = rows[3]
    tree = dendrogram(rows)
    assert tree.identical == 5
    for gone in range(35):
        left = len(set(clusters_at(tree, gone)))
        assert left == 30 - max(5, min(gone, 29))
    assert len(set(clusters_at(tree, 0)[[3, 20, 21, 22, 23, 24]])) == 1


def test_clusters_are_numbered_by_first_members_and_nested():
    tree = dendrogram(random_rows())
    finer = clusters_at(tree, 0)
    assert finer.tolist() == list(range(40))
    for gone in range(1, 40):
        clusters = clusters_at(tree, gone)
        assert list(dict.fromkeys(clusters)) == list(range(40 - gone))
        assert len(set(zip(finer, clusters, strict=True))) == len(set(finer))
        finer = clusters


def test_ties_are_broken_the_same_way_every_time():
    rows = np.eye(12)  # every pair is equally far
    trees = [dendrogram(rows), dendrogram(rows.copy()), dendrogram(np.asfortranarray(rows))]
    for gone in range(12):
        clusters = [clusters_at(tree, gone).tolist() for tree in trees]
        assert clusters[0] == clusters[1] == clusters[2]
        assert len(set(clusters[0])) == 12 - gone


@pytest.mark.parametrize("linkage", ["complete", "single"])
def test_merges_within_a_height(linkage):
    rows = np.array([[0.0], [1.0], [3.0], [3.0], [10.0]])
    tree = dendrogram(rows, linkage)
    assert [tree.merged_within(height) for height in (0, 1, 2, 3, 7, 10)] == (
        [1, 2, 2, 3, 3, 4] if linkage == "complete" else [1, 2, 3, 3, 4, 4]
    )


def test_the_order_puts_identical_rows_side_by_side():
    tree = dendrogram(np.array([[0.0], [9.0], [0.1], [9.0], [0.0]]))
    assert sorted(tree.order) == [0, 1, 2, 3, 4]
    place = np.argsort(tree.order)
    assert abs(place[0] - place[4]) == abs(place[1] - place[3]) == 1


def test_one_row_and_equal_rows_are_trees_too():
    assert clusters_at(dendrogram(np.ones((1, 4))), 3).tolist() == [0]
    assert clusters_at(dendrogram(np.ones((5, 4))), 0).tolist() == [0] * 5
    assert dendrogram(np.ones((5, 4))).order.tolist() == [0, 1, 2, 3, 4]


def test_an_unknown_linkage_is_refused():
    with pytest.raises(ValueError, match="complete, single"):
        dendrogram(random_rows(), "ward")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("part", [(1 << 21, 1 << 16), (40, 1 << 16), (1 << 21, 7)])
def test_duplicates_are_counted_in_parts(monkeypatch, dtype, part):
    monkeypatch.setattr(similarity, "_PART", part)
    monkeypatch.setattr(similarity, "_CHUNK", 64)
    rows = torch.randint(-1, 2, (200, 2, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    rows[0] = torch.tensor(-0.0).to(dtype)
    rows[1] = torch.tensor(0.0).to(dtype)
    assert count_duplicates(rows) == 200 - len(np.unique(rows.double().numpy().reshape(200, 6), axis=0)) > 20
    assert count_duplicates(rows[:2]) == 1
    assert count_duplicates(rows[:1]) == 0


def test_rows_of_equal_checksums_are_no_duplicates(monkeypatch):
    monkeypatch.setattr(similarity, "_PART", (1, 1))
    monkeypatch.setattr(similarity, "_checksums", lambda rows: np.zeros(len(rows), np.uint64))
    assert count_duplicates(torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])) == 1
