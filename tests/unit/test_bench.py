"""The performance comparison on tiny inputs: it agrees, it measures, and it refuses what does not agree."""

import pytest
import torch

from panolib import bench

TINY = bench.Sizes(
    height=24, width=48, panoptic_height=32, panoptic_width=50, embedding_dims=(4,), n_instances=(3,),
    batch_size=2, repeats=1, seed=0,
)  # fmt: skip


def test_every_operation_agrees_with_its_reference_and_is_measured():
    threads = torch.get_num_threads()
    table = bench.performance(TINY, threads=(1,), progress=False)
    assert torch.get_num_threads() == threads
    assert len(table) == 6 and table.operation.is_unique
    assert (table.ours_ms > 0).all() and (table.reference_ms > 0).all()
    assert table.ratio.tolist() == pytest.approx((table.reference_ms / table.ours_ms).tolist())
    assert table.agreement.str.contains("identical|difference|Rand").all()
    assert table.machine.str.contains("cores").all() and table.versions.str.contains("torch").all()


def test_a_wrong_result_is_never_timed():
    wrong = bench.Operation(
        "sum",
        "1",
        "loop",
        ours=lambda: 1.0,
        reference=lambda: 2.0,
        check=lambda a, b: bench._close(a, b, 0.1),
    )
    with pytest.raises(AssertionError, match="relative difference"):
        bench.measure(wrong, repeats=1)
