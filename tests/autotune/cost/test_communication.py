"""What is sent over links and network cards, by hand; and what computation hides of it."""

import dataclasses
import json
from typing import Any

import pytest

from autotune.cluster import Cluster
from autotune.cost.model import CostModel
from autotune.cost.states import STATES
from autotune.cost.trainers import known_trainers, trainer_of, trainer_to_json
from autotune.errors import InputError
from autotune.hardware import Network, device_named
from autotune.layout import Layout
from autotune.model import Model

H100 = device_named("h100")
MODEL = Model(
    num_hidden_layers=8,
    hidden_size=4096,
    intermediate_size=16384,
    num_attention_heads=32,
    num_key_value_heads=32,
    vocab_size=32_000,
    sequence_length=2048,
    global_batch_size=1024,
)
BATCH_OF_6 = dataclasses.replace(MODEL, num_hidden_layers=12, global_batch_size=48)
# One whole message, and nothing but bandwidth.
BANDWIDTH_ONLY = {
    "link_efficiency": 1.0,
    "network_efficiency": 1.0,
    "stage_efficiency": 1.0,
    "link_latency_seconds": 0.0,
    "stage_latency_seconds": 0.0,
    "link_hop_seconds": 0.0,
    "network_hop_seconds": 0.0,
    "message_parameters": 1e12,
    "message_parameters_per_replica": 0.0,
}
START = 8.4e-6


def network(**changes: Any) -> Network:
    fields = {"link_gb_per_second": 400.0, "nic_gbit_per_second": 400.0, "nics_per_node": 8}
    return Network(name="mine", source="stated here", **{**fields, **changes})


def seconds(
    layout: Layout,
    *,
    nodes: int,
    links: Network | None = None,
    trainer: str = "nemo",
    model: Model = MODEL,
    gpus_per_node: int = 8,
    **constants: float,
) -> Any:
    links = links or network()
    cluster = Cluster(nodes=nodes, gpus_per_node=gpus_per_node, device=H100, network=links)
    cost = CostModel(model, "bf16", cluster, trainer=trainer)
    time = cost.estimate([layout], {**cost.constants, **BANDWIDTH_ONLY, **constants}).time
    return {field.name: float(getattr(time, field.name)[0]) for field in dataclasses.fields(time)}


def exchanged(layout: Layout, *, nodes: int, links: Network | None = None, **more: Any) -> float:
    """Seconds of data-parallel communication, none of it hidden."""
    return float(seconds(layout, nodes=nodes, links=links, overlap=0.0, **more)["data_parallel"])


def test_the_replicas_of_a_node_share_its_cards() -> None:
    # ZeRO 1 over 16 replicas on 2 nodes: 15/16 of the bf16 gradients, and of the weights, pass
    # through the eight 50 GB/s cards of a node, which the eight ranks of the one group all use.
    whole = exchanged(Layout(data_parallel=16), nodes=2)
    volume = 15 / 16 * 2 * MODEL.parameters
    assert whole == pytest.approx(2 * volume / 400e9 + 2 * START, rel=1e-3)
    # At tensor parallelism 4 a group has two ranks per node, a quarter of the cards and of the
    # parameters, and 4 replicas.
    quarter = exchanged(Layout(tensor_parallel=4, data_parallel=4), nodes=2)
    assert quarter == pytest.approx(whole * (3 / 4) / (15 / 16), rel=1e-3)


def test_within_a_node_only_the_links_matter() -> None:
    inside = exchanged(Layout(data_parallel=8), nodes=1)
    assert inside == exchanged(
        Layout(data_parallel=8), nodes=1, links=network(nic_gbit_per_second=1.0)
    )
    assert inside == pytest.approx(2 * 7 / 8 * 2 * MODEL.parameters / 400e9 + 2 * START, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "slower"),
    [({"nics_per_node": 1}, 8), ({"nics_per_node": 4}, 2), ({"oversubscription": 4.0}, 4)],
)
def test_fewer_cards_and_thin_switches_slow_it_down(changes: dict[str, Any], slower: float) -> None:
    layout = Layout(data_parallel=64)
    before, after = (exchanged(layout, nodes=8, links=n) for n in (network(), network(**changes)))
    assert after == pytest.approx(slower * before, rel=1e-3)


def test_a_rack_that_is_joined_by_links_is_one_domain() -> None:
    # 8 trays of 4 GPUs in one NVL72 rack: no card is used.
    layout = Layout(data_parallel=32)
    rack = network(link_domain=72, nics_per_node=None)
    apart = network(nics_per_node=None, nic_gbit_per_second=1.0)
    tray = {"nodes": 8, "gpus_per_node": 4}
    assert exchanged(layout, links=rack, **tray) == pytest.approx(
        exchanged(layout, links=dataclasses.replace(rack, nic_gbit_per_second=1.0), **tray)
    )
    assert exchanged(layout, links=apart, **tray) > 50 * exchanged(layout, links=rack, **tray)


def test_latency_grows_with_the_ring_and_the_messages() -> None:
    layout, hop = Layout(data_parallel=64), 14e-6
    without = exchanged(layout, nodes=8)
    # A ring over 64 ranks leaves a node 7 times; weights and gradients are one message each.
    once = exchanged(layout, nodes=8, network_hop_seconds=hop) - without
    assert once == pytest.approx(2 * 7 * hop)
    small = {"message_parameters": MODEL.parameters / 100}
    more = exchanged(layout, nodes=8, network_hop_seconds=hop, **small)
    assert more - exchanged(layout, nodes=8, **small) == pytest.approx(2 * 7 * hop * 100, rel=1e-4)
    grown = {"message_parameters_per_replica": MODEL.parameters / 64}
    assert exchanged(layout, nodes=8, **grown, **small) == pytest.approx(without)


def test_shared_links_between_switches_slow_large_clusters_down() -> None:
    layout = Layout(data_parallel=64)
    free, shared = (exchanged(layout, nodes=8, network_congestion=c) for c in (0.0, 0.25))
    assert shared == pytest.approx(3 * free, rel=1e-2)
    one_node = [
        exchanged(Layout(data_parallel=8), nodes=1, network_congestion=c) for c in (0.0, 0.25)
    ]
    assert one_node[0] == one_node[1]


def test_computation_hides_what_it_is_longer_than() -> None:
    layout = Layout(data_parallel=64, gradient_accumulation_steps=16)
    many = {"message_parameters": 2e7}
    exposed = exchanged(layout, nodes=8, **many)
    hidden = seconds(layout, nodes=8, overlap=1.0, **many)["data_parallel"]
    # A backward pass of 2048 tokens is longer than the reduction: only the last message is left.
    assert 0 < hidden < 0.02 * exposed
    # On a slow network it is not: what is longer than both passes is left.
    slow = {"links": network(nic_gbit_per_second=1.0)}
    whole = seconds(layout, nodes=8, overlap=0.0, **many, **slow)
    rest = seconds(layout, nodes=8, overlap=1.0, **many, **slow)
    computing = sum(rest[c] for c in ("matrix_products", "attention", "element_wise", "launch"))
    saved = whole["data_parallel"] - rest["data_parallel"]
    assert saved == pytest.approx(computing / 16, rel=0.02)


def test_trainers_differ_in_what_they_hide_and_send() -> None:
    layout = Layout(data_parallel=64, gradient_accumulation_steps=16)
    sent = {
        name: exchanged(layout, nodes=8, trainer=name)
        for name in ("nemo", "megatron", "deepspeed_llm", "deepspeed")
    }
    # Gradients in fp32, or an all-reduce in place of a reduce-scatter: 3 units for 2.
    assert sent["megatron"] == pytest.approx(1.5 * sent["nemo"], rel=1e-2)
    assert sent["deepspeed"] == pytest.approx(1.5 * sent["nemo"], rel=2e-2)
    assert sent["deepspeed_llm"] == pytest.approx(sent["nemo"], rel=1e-2)
    many = {"message_parameters": 1e6, "overlap": 1.0}
    left = {n: seconds(layout, nodes=8, trainer=n, **many)["data_parallel"] for n in sent}
    assert left["deepspeed"] > left["deepspeed_llm"] > left["nemo"]


def test_tensor_parallel_collectives_are_hidden_as_the_trainer_says() -> None:
    layout = Layout(tensor_parallel=8, gradient_accumulation_steps=16)
    never, backward, ours, both = tensor_parallel_seconds(layout)
    assert both == 0, "products are longer than these collectives"
    assert backward == ours == pytest.approx(never / 2)
    sharded = dataclasses.replace(layout, sequence_parallel=True)
    never, backward, ours, both = tensor_parallel_seconds(sharded)
    assert both == 0
    # Gradients of the regions' outputs are gathered before anything can be computed with them.
    assert backward == ours == pytest.approx(never * 3 / 4)


def test_inputs_that_were_not_kept_are_gathered_again() -> None:
    layout = Layout(tensor_parallel=8, sequence_parallel=True, gradient_accumulation_steps=16)
    kept = tensor_parallel_seconds(layout, overlap=0.0)[0]
    again = tensor_parallel_seconds(layout, overlap=0.0)[1:]
    assert again == pytest.approx([kept * 5 / 4] * 3)


def tensor_parallel_seconds(layout: Layout, **constants: float) -> list[float]:
    """Of trainers that hide nothing, and in the backward pass (Megatron and ours), and all."""
    equal = {"overlap": 1.0, "sequence_parallel_traffic": 1.0, **constants}
    return [
        seconds(layout, nodes=1, trainer=name, **equal)["tensor_parallel"]
        for name in ("deepspeed", "megatron", "deepspeed_llm", "nemo")
    ]


def test_what_neighbouring_stages_exchange() -> None:
    layout = Layout(tensor_parallel=8, pipeline_parallel=4, gradient_accumulation_steps=16)
    # Blocks that do not divide, and a short head: the second stage is the slowest.
    model = dataclasses.replace(MODEL, vocab_size=64, num_hidden_layers=34)
    found = {
        name: seconds(layout, nodes=4, trainer=name, model=model)["stage_transfers"]
        for name in ("deepspeed_llm", "fsdp2", "deepspeed", "megatron")
    }
    # 2048 x 4096 x 2 bytes over a 50 GB/s card; or an eighth, and 7/8 over the 400 GB/s links.
    message = 2048 * 4096 * 2 / 50e9
    partitioned = message * (1 / 8 + 7 / 8 * 50 / 400)
    # DeepSpeed waits for activations and gradients one after the other; both ways are used at once
    # by the others.
    assert found["deepspeed_llm"] == pytest.approx(16 * 2 * 2 * message)
    assert found["fsdp2"] == pytest.approx(16 * 2 * message)
    assert found["deepspeed"] == pytest.approx(16 * 2 * 2 * partitioned)
    assert found["megatron"] == pytest.approx(16 * 2 * partitioned)


def test_a_stage_that_the_trainer_lacks_is_refused() -> None:
    cluster = Cluster(nodes=1, gpus_per_node=8, device=H100)
    cost = CostModel(MODEL, "bf16", cluster, trainer="megatron")
    with pytest.raises(InputError, match="trainer megatron has ZeRO stage 0 and 1 only, got 3"):
        cost.prepare([Layout(data_parallel=8, zero_stage=3)])
    assert cost.prepare([Layout(zero_stage=3)]), "one replica shards nothing"


def test_groups_that_do_not_fit_domains_are_as_slow_as_the_worst() -> None:
    # 24 GPUs of 3 nodes in 4 stages of 6: the second stage has two ranks on one node and four on
    # the next, which have a quarter of a node's cards at the narrowest.
    uneven = exchanged(Layout(pipeline_parallel=4, data_parallel=6), nodes=3, model=BATCH_OF_6)
    even = exchanged(Layout(pipeline_parallel=3, data_parallel=8), nodes=3, model=BATCH_OF_6)
    assert uneven > 2 * even
    # Racks of 72: stages of 64 cross them, stages of 72 do not.
    rack = network(link_domain=72, nics_per_node=None, nic_gbit_per_second=1.0)
    crossing, inside = (
        exchanged(
            Layout(pipeline_parallel=2, data_parallel=size),
            nodes=size // 2,
            gpus_per_node=4,
            links=rack,
            model=dataclasses.replace(MODEL, global_batch_size=size),
        )
        for size in (64, 72)
    )
    assert crossing > 50 * inside


def test_a_stage_at_the_edge_of_a_node_has_one_neighbour_beyond() -> None:
    def transfers(layout: Layout, nodes: int) -> float:
        # The second stage is the slowest, as above.
        model = dataclasses.replace(MODEL, vocab_size=64, num_hidden_layers=34)
        time = seconds(layout, nodes=nodes, trainer="deepspeed_llm", model=model)
        return float(time["stage_transfers"])

    # Two stages of 4 per node on 400 GB/s links, the third on another node behind a 50 GB/s card.
    many = {"pipeline_parallel": 4, "gradient_accumulation_steps": 16}
    one_node = transfers(Layout(tensor_parallel=2, **many), 1)
    two_nodes = transfers(Layout(tensor_parallel=4, **many), 2)
    each_alone = transfers(Layout(tensor_parallel=8, **many), 4)
    assert two_nodes == pytest.approx((one_node + each_alone) / 2)


def test_a_pipeline_hides_where_the_trainer_can() -> None:
    layout = Layout(pipeline_parallel=2, data_parallel=32, gradient_accumulation_steps=32)
    for trainer, hides in (("megatron", True), ("deepspeed_llm", False), ("deepspeed", False)):
        exposed, hidden = (
            seconds(layout, nodes=8, trainer=trainer, overlap=share, message_parameters=2e7)[
                "data_parallel"
            ]
            for share in (0.0, 1.0)
        )
        assert (hidden < 0.5 * exposed) is hides, trainer


def test_every_trainer_says_where_it_is_from() -> None:
    for name, trainer in known_trainers().items():
        assert trainer.name == name and len(trainer.source) > 20
        assert all(constant.source for constant in trainer.constants.values())
        assert trainer.states in STATES
        assert trainer_of(json.loads(trainer_to_json(trainer))) == trainer
