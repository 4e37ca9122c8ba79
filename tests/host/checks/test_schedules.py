"""Schedules of a MODEL: those of other models are refused by the node that sets them, shifts reported."""

import logging

import pytest
from comfy_extras import nodes_model_advanced as advanced
from swifti2v.nodes.checks.models import check_schedule
from swifti2v.nodes.comfyui.models import foreign_schedule, has_chosen_shift, with_shift

OTHERS = {
    "ModelSamplingAuraFlow": lambda model: advanced.ModelSamplingAuraFlow().patch_aura(model, 1.73),
    "ModelSamplingFlux": lambda model: advanced.ModelSamplingFlux().patch(model, 1.15, 0.5, 1024, 1024),
    "ModelSamplingStableCascade": lambda model: advanced.ModelSamplingStableCascade().patch(model, 2.0),
    "ModelSamplingContinuousV": lambda model: advanced.ModelSamplingContinuousV().patch(
        model, "v_prediction", 500.0, 0.03
    ),
    **{
        f"ModelSamplingContinuousEDM {kind}": lambda model, kind=kind: (
            advanced.ModelSamplingContinuousEDM().patch(model, kind, 120.0, 0.002)
        )
        for kind in ("v_prediction", "edm", "eps", "cosmos_rflow")
    },
    **{
        f"ModelSamplingDiscrete {kind}": lambda model, kind=kind: advanced.ModelSamplingDiscrete().patch(
            model, kind, False
        )
        for kind in ("eps", "v_prediction", "lcm", "x0")
    },
}


def sd3(model, shift):
    return advanced.ModelSamplingSD3().patch(model, shift)[0]


@pytest.mark.parametrize("name", OTHERS)
def test_a_schedule_of_another_model_is_refused_by_the_node_that_sets_it(stage_two, name):
    model = OTHERS[name](stage_two)[0]
    with pytest.raises(ValueError, match=f"the schedule that the node {name.split()[0]} sets, but Wan"):
        check_schedule(model, "X")


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 5.0, 8.0, 100.0])
def test_every_shift_of_flow_matching_is_taken(stage_two, shift):
    for model in (sd3(stage_two, shift), with_shift(stage_two, shift)):
        assert foreign_schedule(model) is None
        check_schedule(model, "X")


def test_shift_0_is_refused(stage_two):
    with pytest.raises(ValueError, match=r"^X has shift 0, but it must be above 0; the usual value is 5"):
        check_schedule(sd3(stage_two, 0.0), "X")


@pytest.mark.parametrize("node", ["SwiftI2V_SegmentSampler", "SwiftI2V_MotionSampler"])
def test_a_shift_that_nobody_chose_is_a_warning(run, stage_one, z_ref, vae, photo, caplog, node):
    def levels(model):
        caplog.clear()
        with caplog.at_level(logging.INFO, "SwiftI2V"):
            if node == "SwiftI2V_SegmentSampler":
                run(node, model=model, z_ref=z_ref, steps=1, denoise=0.5)
            else:
                options = {"width": 96, "height": 64, "frames": 5, "steps": 1}
                run(node, model_high_noise=model, vae=vae, image=photo, **options)
        return [record.levelno for record in caplog.records if "shift is" in record.getMessage()]

    assert levels(stage_one) == []
    assert levels(sd3(stage_one, 5.0)) == []
    assert levels(with_shift(stage_one, 8.0)) == [logging.INFO]
    assert levels(sd3(stage_one, 8.0)) == [logging.WARNING]
    assert has_chosen_shift(stage_one) and not has_chosen_shift(sd3(stage_one, 5.0))
