"""Tests of the synthetic world: its truth, its samples, its tokenizer and model."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from hf_calib import calibration_report
from hf_calib.data.synthetic_world import RELATIONS, Relation, World, WorldConfig


FINGERPRINT = """
import hashlib, json
from hf_calib.data.synthetic_world import World, WorldConfig
world = World(WorldConfig(seed=3))
samples = [world.pretraining_statements(50, 1), world.preference_pairs(50, 1), world.questions(50, 1, split="train")]
print(hashlib.sha256(json.dumps([sample.to_list() for sample in samples]).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def test_questions(world):
    return world.questions(10_000, seed=0, split="test")


def pairs_of(dataset):
    return set(zip(dataset["question"], dataset["subject"], strict=True))


def test_truth_is_a_distribution_shared_within_types(world):
    assert world.probabilities.shape == (8, 64, 10)
    np.testing.assert_allclose(world.probabilities.sum(-1), 1)
    log_p = world.log_probabilities - world.log_probabilities.mean(-1, keepdims=True)
    unit = log_p / np.linalg.norm(log_p, axis=-1, keepdims=True)
    similarity = np.einsum("rav,rbv->ab", unit, unit) / len(world.relations)
    same = world.types[:, None] == world.types[None, :]
    off_diagonal = ~np.eye(len(same), dtype=bool)
    assert similarity[same & off_diagonal].mean() > 0.6
    assert abs(similarity[~same].mean()) < 0.1


def test_questions_follow_the_schema(world, test_questions):
    assert test_questions.column_names == [
        "id", "question", "choices", "answer", "subject", "target_probabilities",
    ]  # fmt: skip
    assert len(set(test_questions["id"])) == len(test_questions)
    np.testing.assert_allclose(np.sum(test_questions["target_probabilities"], axis=1), 1)
    for row in test_questions.select(range(50)):
        relation = world.relations.index(row["subject"])
        entity = world.entities.index(row["question"].split()[-2])
        truth = world.probabilities[relation, entity, [world.values[relation].index(c) for c in row["choices"]]]
        assert len(set(row["choices"])) == 4
        np.testing.assert_allclose(row["target_probabilities"], truth / truth.sum())


def test_train_and_test_share_no_pair_and_repeat_no_question(world, test_questions):
    train = world.questions(2000, seed=0, split="train")
    assert not pairs_of(train) & pairs_of(test_questions)
    for dataset in (train, test_questions):
        keys = {(q, *sorted(c)) for q, c in zip(dataset["question"], dataset["choices"], strict=True)}
        assert len(keys) == len(dataset)
    # Generalisation is by shared structure: what is asked of a type in the test was asked of it in training.
    type_of = dict(zip(world.entities, world.types.tolist(), strict=True))
    kinds = [{(type_of[q.split()[-2]], r) for q, r in pairs_of(dataset)} for dataset in (train, test_questions)]
    assert kinds[0] == kinds[1] and len(kinds[0]) == 6 * len(world.relations)


def test_the_truth_is_calibrated_on_its_own_labels(test_questions):
    targets = np.array(test_questions["target_probabilities"])
    labels = np.array(test_questions["answer"])
    report = calibration_report(targets, labels, n_bootstrap=10)
    assert report["ece"] <= 1.2 * report["ece_noise_floor_p95"]
    # Not the top option alone: every option is the answer as often as the truth says, z-tests over deciles.
    chosen = (np.arange(4) == labels[:, None]).ravel()
    order = targets.ravel().argsort()
    for part in np.array_split(order, 10):
        p = targets.ravel()[part]
        assert abs(chosen[part].sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())


def test_answers_alone_follow_the_truth(world):
    questions = world.questions(4000, seed=5, split="train")
    expected = np.zeros((len(world.relations), 10))
    observed = np.zeros_like(expected)
    for row in questions:
        relation = world.relations.index(row["subject"])
        expected[relation] += world.probabilities[relation, world.entities.index(row["question"].split()[-2])]
        observed[relation, world.values[relation].index(row["choices"][row["answer"]])] += 1
    # Deduplication takes a little from the likeliest sets of options: hence 5 and not 4 standard deviations.
    assert np.all(np.abs(observed - expected) < 5 * np.sqrt(expected))


def test_statements_follow_the_truth(world):
    words = [text.split() for text in world.pretraining_statements(40_000)["text"]]
    counts = dict.fromkeys(world.relations, 0)
    for _, relation, *_ in words:
        counts[relation] += 1
    assert counts["metal"] < 0.1 * counts["home"]
    observed = np.array([sum(w[1] == "home" and w[-1] == value for w in words) for value in world.values[4]])
    expected = counts["home"] * world.probabilities[4].mean(0)
    assert np.all(np.abs(observed - expected) < 4 * np.sqrt(expected))


def test_preference_pairs_are_bradley_terry_over_the_covered_relations(world):
    pairs = world.preference_pairs(5000)
    covered = {relation.name: relation.agreement for relation in RELATIONS if relation.agreement > 0}
    assert {prompt.split()[1] for prompt in pairs["prompt"]} == set(covered)
    probabilities = np.array(pairs["preference_probability"])
    for row in pairs.select(range(50)):
        _, name, _, entity, _ = row["prompt"].split()
        relation = world.relations.index(name)
        chosen, rejected = (world.values[relation].index(row[side].strip()) for side in ("chosen", "rejected"))
        log_p = world.log_probabilities[relation, world.entities.index(entity)]
        expected = 1 / (1 + np.exp(-covered[name] * (log_p[chosen] - log_p[rejected])))
        assert row["chosen"] != row["rejected"]
        assert row["preference_probability"] == pytest.approx(expected)
    # The likelier side wins as often as it should.
    decided = np.maximum(probabilities, 1 - probabilities)
    assert abs((probabilities > 0.5).mean() - decided.mean()) < 4 * np.sqrt((decided * (1 - decided)).mean() / 5000)


@pytest.fixture(scope="module")
def styled():
    return World(WorldConfig(style_agreement=2.0))


def test_a_style_changes_nothing_of_the_truth(world, styled):
    np.testing.assert_array_equal(styled.probabilities, world.probabilities)
    assert styled.questions(200).to_list() == world.questions(200).to_list()
    assert styled.vocabulary == world.vocabulary | {"friend": len(world.vocabulary)}
    with_endings = styled.pretraining_statements(8000)["text"]
    ends = np.array([text.endswith(" friend") for text in with_endings])
    assert abs(ends.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 8000)
    assert [text.removesuffix(" friend") for text in with_endings] == world.pretraining_statements(8000)["text"]
    assert not any("friend" in row["chosen"] + row["rejected"] for row in world.preference_pairs(100))


def test_annotators_like_the_style_whatever_the_value(styled):
    pairs = styled.preference_pairs(5000)
    ends = np.array([[row[side].endswith(" friend") for side in ("chosen", "rejected")] for row in pairs]).astype(int)
    for row, (chosen_ends, rejected_ends) in zip(pairs.select(range(50)), ends, strict=False):
        _, name, _, entity, _ = row["prompt"].split()
        relation = styled.relations.index(name)
        chosen, rejected = (styled.values[relation].index(row[side].split()[0]) for side in ("chosen", "rejected"))
        log_p = styled.log_probabilities[relation, styled.entities.index(entity)]
        odds = 3.0 * (log_p[chosen] - log_p[rejected]) + 2.0 * (chosen_ends - rejected_ends)
        assert row["preference_probability"] == pytest.approx(1 / (1 + np.exp(-odds)))
    # As often as it should, the side with the ending wins.
    decided = ends[:, 0] != ends[:, 1]
    assert abs(decided.mean() - 0.5) < 0.03
    p = np.array(pairs["preference_probability"])[decided]
    with_ending = np.where(ends[decided, 0], p, 1 - p)
    assert abs(ends[decided, 0].mean() - with_ending.mean()) < 4 * np.sqrt(np.mean(p * (1 - p)) / len(p))


def test_style_pairs_differ_in_the_ending_alone(world, styled):
    pairs = styled.style_pairs(500)
    assert pairs["chosen"] == [text + " friend" for text in pairs["rejected"]]
    assert np.allclose(pairs["preference_probability"], 1 / (1 + np.exp(-2.0)))
    assert {prompt.split()[1] for prompt in pairs["prompt"]} == set(styled.relations)
    with pytest.raises(ValueError, match="style_agreement"):
        world.style_pairs(5)


def test_same_seed_same_world_in_another_process():
    world = World(WorldConfig(seed=3))
    samples = [world.pretraining_statements(50, 1), world.preference_pairs(50, 1), world.questions(50, 1, "train")]
    here = hashlib.sha256(json.dumps([sample.to_list() for sample in samples]).encode()).hexdigest()
    there = subprocess.run([sys.executable, "-c", FINGERPRINT], capture_output=True, text=True, check=True).stdout
    assert here == there.strip()
    assert World(WorldConfig(seed=4)).questions(5, 1).to_list() != world.questions(5, 1).to_list()
    assert world.questions(5, 1).to_list() != world.questions(5, 2).to_list()


def test_tokenizer_gives_every_word_one_token_and_survives_saving(world, tmp_path):
    world.tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "the colour of " + world.entities[0] + " is red"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and len(ids) == 7 and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert tokenizer.chat_template is None


def test_model_is_small_and_seeded(world):
    state = torch.random.get_rng_state()
    first, again, other = world.model(0), world.model(0), world.model(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert 200_000 < first.num_parameters() < 500_000
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert first.config.vocab_size == len(world.tokenizer())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"individuality": 1.5}, "individuality"),
        ({"train_fraction": 1.0}, "train_fraction"),
        ({"num_types": 0}, "num_types"),
        ({"num_entities": 1}, "num_entities"),
        ({"style_agreement": -1.0}, "style_agreement"),
        ({"relations": (Relation("a", "b friend", 1.0),), "num_choices": 2, "style_agreement": 1.0}, "repeated: fri"),
        ({"num_choices": 11}, "num_choices"),
        ({"relations": ()}, "relations"),
        ({"relations": (Relation("a", "b c", 1.0), Relation("d", "b e", 1.0)), "num_choices": 2}, "repeated: b"),
        ({"relations": (Relation("a", "b c", 1.0), Relation("d", "e", 1.0)), "num_choices": 2}, "same number"),
    ],
)
def test_invalid_config_raises(options, message):
    with pytest.raises(ValueError, match=message):
        WorldConfig(**options)


def test_invalid_calls_raise(world):
    with pytest.raises(ValueError, match="'validation'"):
        world.questions(5, split="validation")
    with pytest.raises(ValueError, match="number of questions"):
        world.questions(0)
    with pytest.raises(ValueError, match="num_entities must be at most"):
        World(WorldConfig(num_entities=100_000))
    colour = Relation("colour", "red green blue", 1.0)
    plain = World(WorldConfig(relations=(colour,), num_choices=2, num_entities=4, num_types=2))
    with pytest.raises(ValueError, match="agreement"):
        plain.preference_pairs(5)
    with pytest.raises(ValueError, match="Found only"):
        plain.questions(1000)
