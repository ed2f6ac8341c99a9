"""Where descents begin: navigation's error drawn, or given."""

import torch
from flights import DESCENT

from tnav.evaluate.descent_plan import scenario_of
from tnav.evaluate.flight_start import start


def test_an_error_that_is_given_is_that_of_all_and_changes_no_other_draw() -> None:
    scenario, error_L = scenario_of(DESCENT), (3.0, -4.0, 900.0)
    spread = DESCENT.dispersion.model_copy(update={"position_error_L": error_L})
    told = DESCENT.model_copy(update={"dispersion": spread})
    cpu = torch.device("cpu")
    given, drawn = start(told, scenario, 5, cpu), start(DESCENT, scenario, 5, cpu)
    off_m = given.state.position_L - given.lander.position_L
    assert torch.allclose(off_m, torch.tensor([error_L], dtype=torch.float64).expand(5, 3))
    assert torch.equal(given.lander.position_L, drawn.lander.position_L)
    assert torch.equal(given.lander.thrust_scale, drawn.lander.thrust_scale)
    for name in ("velocity_L", "R_L_B", "covariance"):
        assert torch.equal(getattr(given.state, name), getattr(drawn.state, name))
    assert bool((drawn.state.position_L - drawn.lander.position_L).std(0).gt(20.0).all())
