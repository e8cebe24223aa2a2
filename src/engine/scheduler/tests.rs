//! Tests of the scheduler with a decoder that finds its tokens in the cache only.

use proptest::prelude::*;

use super::*;

const BLOCK: usize = 4;

fn scheduler(max_running: usize, max_batched_tokens: usize, cache_blocks: usize) -> Scheduler {
    recurrent(max_running, max_batched_tokens, cache_blocks, 0)
}

/// As `scheduler`, of sequences that have recurrent states.
fn recurrent(max_running: usize, max_batched_tokens: usize, cache_blocks: usize, state_slots: usize) -> Scheduler {
    let (block_tokens, max_idle_blocks) = (BLOCK, cache_blocks);
    Scheduler::new(Limits { max_running, max_batched_tokens, cache_blocks, state_slots, block_tokens, max_idle_blocks })
}

/// `len` tokens that begin like no other sequence's.
fn arrival(id: SequenceId, len: usize) -> Arrival {
    Arrival { tokens: vec![100 + id as u32; len], ..Arrival::default() }
}

fn run(scheduler: &mut Scheduler, pace: usize) -> Vec<(SequenceId, usize, usize, bool)> {
    run_with(scheduler, |_| pace)
}

fn run_with(scheduler: &mut Scheduler, pace: impl Fn(DecodeLoad) -> usize) -> Vec<(SequenceId, usize, usize, bool)> {
    let chunks = scheduler.schedule(pace);
    for chunk in &chunks {
        scheduler.computed(chunk, if chunk.samples { &[0] } else { &[] });
    }
    chunks.into_iter().map(|c| (c.id, c.start, c.len, c.samples)).collect()
}

fn step(scheduler: &mut Scheduler) -> Vec<(SequenceId, usize, usize, bool)> {
    run(scheduler, usize::MAX)
}

#[test]
fn a_long_prompt_shares_passes_with_decodes_at_the_pace_it_is_given() {
    let mut s = scheduler(8, 8, 100);
    s.add(0, arrival(0, 3));
    assert_eq!(step(&mut s), [(0, 0, 3, true)]);
    s.add(1, arrival(1, 20));
    assert_eq!(step(&mut s), [(0, 3, 1, true), (1, 0, 8, false)]);
    assert_eq!(run(&mut s, 5), [(0, 4, 1, true), (1, 8, 5, false)]);
    assert_eq!(step(&mut s), [(0, 5, 1, true), (1, 13, 7, true)]);
    assert_eq!(step(&mut s), [(0, 6, 1, true), (1, 20, 1, true)]);
}

#[test]
fn a_prompt_may_slow_streams_down_more_that_have_begun_since_it_came() {
    let mut s = scheduler(8, 6, 100);
    let step = |s: &mut Scheduler| run_with(s, |streams| if streams.newer { 4 } else { 1 });
    let add = |s: &mut Scheduler, id, len| s.add(id, arrival(id, len));
    (0..2).for_each(|id| add(&mut s, id, 6));
    assert_eq!(step(&mut s), [(0, 0, 6, true)]);
    assert_eq!(step(&mut s), [(0, 6, 1, true), (1, 0, 4, false)]);
    add(&mut s, 2, 3);
    // The latest one has to take care of the first stream, and waits for those before it.
    assert_eq!(step(&mut s), [(0, 7, 1, true), (1, 4, 2, true)]);
    assert_eq!(step(&mut s), [(0, 8, 1, true), (1, 6, 1, true), (2, 0, 1, false)]);
    s.remove(0);
    // The other one has begun since it came.
    assert_eq!(step(&mut s), [(1, 7, 1, true), (2, 1, 2, true)]);
}

#[test]
fn no_stream_waits_for_its_next_token_because_of_the_budget() {
    let mut s = scheduler(100, 8, 100);
    (0..20).for_each(|id| s.add(id, arrival(id, 1)));
    (0..3).for_each(|_| drop(step(&mut s)));
    assert_eq!(step(&mut s).len(), 20);
}

#[test]
fn the_youngest_gives_way_when_blocks_run_out_and_comes_back() {
    let mut s = scheduler(8, 100, 4);
    s.add(0, arrival(0, 4));
    s.add(1, arrival(1, 4));
    assert_eq!(step(&mut s), [(0, 0, 4, true), (1, 0, 4, true)]);
    for _ in 0..4 {
        assert_eq!(step(&mut s).len(), 2);
    }
    // Both need a third block; there is none.
    assert_eq!(step(&mut s), [(0, 8, 1, true)]);
    assert_eq!((s.used_blocks(), s.preemptions()), (3, 1));
    s.remove(0);
    let chunks = step(&mut s);
    assert_eq!(chunks.last(), Some(&(1, 4, 5, true)), "what the cache still had of it is not computed again");
    s.remove(1);
    assert_eq!(s.used_blocks(), 0);
}

#[test]
fn prompts_with_a_common_head_compute_it_once_even_in_one_pass() {
    let mut s = scheduler(8, 100, 100);
    let tokens = |last| Arrival { tokens: [vec![1; 9], vec![last]].concat(), ..Arrival::default() };
    s.add(0, tokens(2));
    s.add(1, tokens(3));
    assert_eq!(step(&mut s), [(0, 0, 10, true), (1, 8, 2, true)]);
    s.remove(0);
    s.remove(1);
    s.add(2, tokens(2));
    assert_eq!(step(&mut s), [(2, 8, 2, true)]);
    s.add(
        3,
        Arrival { namespace: CacheNamespace { salt: Some("other".into()), ..CacheNamespace::default() }, ..tokens(2) },
    );
    assert_eq!(step(&mut s), [(2, 10, 1, true), (3, 0, 10, true)]);
}

#[test]
fn a_prompt_that_is_cached_as_a_whole_still_computes_its_last_token() {
    let mut s = scheduler(8, 100, 100);
    s.add(0, arrival(7, 8));
    assert_eq!(step(&mut s), [(0, 0, 8, true)]);
    s.add(1, arrival(7, 8));
    assert_eq!(step(&mut s), [(0, 8, 1, true), (1, 4, 4, true)]);
}

#[test]
fn sequences_that_want_all_rows_compute_all_tokens_and_few_in_a_pass() {
    let mut s = scheduler(8, 100, 100);
    s.add(0, arrival(7, 70));
    assert_eq!(step(&mut s), [(0, 0, 70, true)]);
    s.remove(0);
    s.add(1, Arrival { all_rows: true, ..arrival(7, 70) });
    s.add(2, Arrival { all_rows: true, ..arrival(8, 70) });
    assert_eq!(step(&mut s), [(1, 0, 64, false)]);
    assert_eq!(step(&mut s), [(1, 64, 6, true), (2, 0, 58, false)]);
    s.remove(1);
    s.add(3, arrival(7, 70));
    assert_eq!(step(&mut s), [(2, 58, 12, true), (3, 68, 2, true)], "others find what it computed");
}

#[test]
fn nothing_of_a_failed_pass_is_found_later() {
    let mut s = scheduler(8, 100, 100);
    s.add(0, arrival(7, 8));
    for chunk in s.schedule(|_| 100) {
        s.failed(&chunk);
        s.remove(chunk.id);
    }
    s.add(1, arrival(7, 8));
    assert_eq!(step(&mut s), [(1, 0, 8, true)]);
}

#[test]
fn higher_priorities_go_first_and_nobody_starves() {
    let mut s = scheduler(1, 100, 100);
    s.add(0, arrival(0, 1));
    s.add(1, Arrival { priority: 1, ..arrival(1, 1) });
    s.add(2, arrival(2, 1));
    let mut order = Vec::new();
    for id in 3..3 + 2 * MAX_OVERTAKEN as u64 {
        s.add(id, Arrival { priority: 1, ..arrival(id, 1) });
        let served = step(&mut s)[0].0;
        order.push(served);
        s.remove(served);
    }
    assert_eq!(order[..3], [1, 3, 4]);
    assert_eq!(order[MAX_OVERTAKEN], 0, "it has waited for long enough");
    assert_eq!(order.iter().filter(|id| **id == 2).count(), 0);
}

#[test]
fn a_prompt_of_higher_priority_does_not_wait_for_the_end_of_a_long_one() {
    let mut s = scheduler(8, 8, 100);
    s.add(0, arrival(0, 40));
    s.add(1, Arrival { priority: 2, ..arrival(1, 20) });
    assert_eq!(step(&mut s), [(1, 0, 8, false)]);
    s.remove(1);
    assert_eq!(step(&mut s), [(0, 0, 8, false)]);
    s.add(2, Arrival { priority: 1, ..arrival(2, 3) });
    s.add(3, arrival(3, 3));
    assert_eq!(step(&mut s), [(2, 0, 3, true), (0, 8, 5, false)]);
    assert_eq!(step(&mut s), [(2, 3, 1, true), (0, 13, 8, false)]);
}

#[test]
fn a_prompt_goes_on_if_one_of_higher_priority_finds_no_room() {
    let mut s = scheduler(8, 8, 8);
    s.add(0, arrival(0, 14));
    s.add(1, arrival(1, 10));
    assert_eq!(step(&mut s), [(0, 0, 8, false)]);
    assert_eq!(step(&mut s), [(0, 8, 6, true), (1, 0, 2, false)]);
    s.add(2, Arrival { priority: 1, ..arrival(2, 28) });
    s.set_paused(0, true);
    assert_eq!(step(&mut s), [(1, 2, 8, true)]);
}

#[test]
fn streams_do_not_wait_for_all_rows_sequences_that_a_pass_has_no_room_for() {
    let mut s = scheduler(4, 200, 200);
    (0..6).for_each(|id| s.add(id, Arrival { all_rows: true, ..arrival(id, 70) }));
    s.add(6, arrival(6, 5));
    assert_eq!(step(&mut s), [(0, 0, 64, false), (6, 0, 5, true)]);
}

#[test]
fn a_paused_sequence_costs_nothing_and_goes_on_where_it_was() {
    let mut s = scheduler(1, 100, 100);
    s.add(0, arrival(0, 2));
    assert_eq!(step(&mut s), [(0, 0, 2, true)]);
    s.set_paused(0, true);
    assert_eq!(step(&mut s), []);
    s.set_paused(0, false);
    assert_eq!(step(&mut s), [(0, 2, 1, true)]);
}

#[test]
fn a_paused_sequence_makes_room_for_others_and_comes_back() {
    let mut s = scheduler(1, 100, 100);
    s.add(0, arrival(0, 2));
    s.add(1, arrival(1, 2));
    assert_eq!(step(&mut s), [(0, 0, 2, true)]);
    s.set_paused(0, true);
    assert_eq!(step(&mut s), [(1, 0, 2, true)]);
    s.set_paused(0, false);
    assert_eq!(step(&mut s), [(1, 2, 1, true)]);
    s.remove(1);
    assert_eq!(step(&mut s), [(0, 0, 3, true)]);
}

/// The drafts of a pass's chunks.
fn drafts(chunks: &[Chunk]) -> Vec<(SequenceId, usize)> {
    chunks.iter().map(|chunk| (chunk.id, chunk.draft.len())).collect()
}

#[test]
fn drafts_share_what_prompts_leave_of_a_pass() {
    let mut s = scheduler(8, 100, 100);
    (0..2).for_each(|id| s.add(id, arrival(id, 3)));
    step(&mut s);
    (0..2).for_each(|id| s.set_draft(id, vec![0; 6]));
    s.add(2, arrival(2, 4));
    assert_eq!(drafts(&s.schedule(|_| 9)), [(0, 3), (1, 2), (2, 0)]);
}

#[test]
fn nothing_gives_way_for_a_draft_and_wrong_ones_keep_no_block() {
    let mut s = scheduler(8, 100, 3);
    (0..2).for_each(|id| s.add(id, arrival(id, 2)));
    step(&mut s);
    (0..2).for_each(|id| s.set_draft(id, vec![0; 6]));
    let chunks = s.schedule(|_| 100);
    assert_eq!(drafts(&chunks), [(0, 5), (1, 1)], "there is one free block");
    assert_eq!((s.used_blocks(), s.preemptions()), (3, 0));
    s.computed(&chunks[0], &[0]);
    s.computed(&chunks[1], &[1]);
    assert_eq!(s.used_blocks(), 2);
    assert_eq!(step(&mut s), [(0, 3, 1, true), (1, 3, 1, true)]);
}

#[test]
fn right_tokens_of_a_draft_are_shared_and_wrong_ones_are_not() {
    for (right, cached) in [(6, 8), (4, 4), (5, 8)] {
        let mut s = scheduler(8, 100, 100);
        s.add(0, arrival(7, 2));
        step(&mut s);
        s.set_draft(0, vec![1; 6]);
        let chunks = s.schedule(|_| 100);
        s.computed(&chunks[0], &[vec![1; right], vec![2]].concat());
        s.remove(0);
        let tokens = [vec![107; 2], vec![0], vec![1; 9]].concat();
        s.add(1, Arrival { tokens, ..Arrival::default() });
        assert_eq!(step(&mut s), [(1, cached, 12 - cached, true)]);
    }
}

#[test]
fn prefix_hits_of_recurrent_models_end_at_a_snapshot() {
    let mut s = recurrent(8, 100, 100, 8);
    let prompt =
        |head: usize, last: u32| Arrival { tokens: [vec![1; head], vec![last; 6]].concat(), ..Arrival::default() };
    s.add(0, prompt(13, 2));
    assert_eq!(step(&mut s), [(0, 0, 19, true)]);
    s.remove(0);
    assert_eq!((s.used_states(), s.idle_states()), (0, 1), "one before the last token of the prompt");
    s.add(1, prompt(13, 2));
    assert_eq!(step(&mut s), [(1, 16, 3, true)]);
    s.add(2, prompt(13, 3));
    assert_eq!(step(&mut s), [(1, 19, 1, true), (2, 0, 19, true)], "no snapshot where they branch yet");
    s.add(3, prompt(13, 4));
    assert_eq!(step(&mut s)[2], (3, 12, 7, true));
}

#[test]
fn next_chat_turn_hits_the_last_snapshot_of_the_answer() {
    let mut s = recurrent(8, 100, 100, 8);
    s.add(0, arrival(0, 6));
    (0..11).for_each(|_| drop(step(&mut s)));
    s.remove(0);
    assert_eq!(s.idle_states(), 2, "of the prompt, and the last one of the answer");
    let tokens = [vec![100; 6], vec![0; 10], vec![5; 3]].concat();
    s.add(1, Arrival { tokens, ..Arrival::default() });
    assert_eq!(step(&mut s), [(1, 16, 3, true)]);
}

#[test]
fn snapshots_are_evicted_with_their_blocks() {
    let mut s = recurrent(8, 100, 3, 8);
    s.add(0, arrival(0, 9));
    step(&mut s);
    s.remove(0);
    assert_eq!((s.idle_blocks(), s.idle_states()), (2, 1));
    s.add(1, arrival(1, 9));
    step(&mut s);
    s.remove(1);
    assert_eq!((s.idle_blocks(), s.idle_states()), (2, 1));
    s.add(2, arrival(0, 9));
    assert_eq!(step(&mut s), [(2, 0, 9, true)]);
}

#[test]
fn state_slots_bound_the_running_sequences() {
    let mut s = recurrent(8, 100, 100, 2);
    (0..3).for_each(|id| s.add(id, arrival(id, 3)));
    assert_eq!(step(&mut s), [(0, 0, 3, true), (1, 0, 3, true)]);
    assert_eq!((s.used_states(), s.idle_slots()), (2, 0));
    s.set_paused(1, true);
    assert_eq!(step(&mut s), [(0, 3, 1, true), (2, 0, 3, true)]);
    s.set_paused(1, false);
    s.remove(2);
    assert_eq!(step(&mut s), [(0, 4, 1, true), (1, 0, 4, true)]);
    (0..2).for_each(|id| s.remove(id));
    assert_eq!(s.used_states(), 0);
}

#[test]
fn rejected_drafts_go_back_to_a_saved_state() {
    for (state_slots, next) in [(9, (0, 6, 1, true)), (3, (0, 4, 3, true)), (2, (0, 3, 4, true)), (1, (0, 3, 1, true))]
    {
        let mut s = recurrent(1, 100, 100, state_slots);
        s.add(0, arrival(7, 2));
        step(&mut s);
        s.set_draft(0, vec![1; 6]);
        let chunks = s.schedule(|_| 100);
        let drafted = chunks[0].draft.len();
        assert_eq!(drafted, if state_slots == 1 { 0 } else { 6 });
        s.computed(&chunks[0], &[&[1; 3][..drafted.min(3)], &[2]].concat());
        assert_eq!(step(&mut s), [next], "{state_slots} slots");
        assert_eq!(s.used_states(), 1);
    }
}

#[test]
fn prompts_of_recurrent_models_are_cut_at_block_borders() {
    let mut s = recurrent(8, 7, 100, 8);
    s.add(0, arrival(0, 20));
    assert_eq!(step(&mut s), [(0, 0, 4, false)]);
    assert_eq!(step(&mut s), [(0, 4, 4, false)]);
    s.add(1, arrival(1, 1));
    s.set_paused(0, true);
    step(&mut s);
    s.set_paused(0, false);
    assert_eq!(run(&mut s, 3), [(1, 1, 1, true), (0, 8, 3, false)], "or earlier, if there is no room for a block");
}

#[test]
fn failed_passes_keep_no_state() {
    let mut s = recurrent(8, 100, 100, 8);
    s.add(0, arrival(7, 9));
    for chunk in s.schedule(|_| 100) {
        assert_eq!(chunk.states.saves.len(), 2, "its own and a snapshot");
        s.failed(&chunk);
        s.remove(chunk.id);
    }
    assert_eq!((s.used_states(), s.idle_states()), (0, 0));
}

/// A decoder whose next token is a function of all tokens before it, which it finds in its cache
/// only: wrong blocks give wrong tokens. If sequences have states, they are the hash of these tokens.
struct FakeDecoder {
    cache: Vec<u32>,
    states: Vec<Option<u32>>,
}

impl FakeDecoder {
    const START: u32 = 17;

    fn new(cache_blocks: usize, state_slots: usize) -> Self {
        Self { cache: vec![u32::MAX; cache_blocks * BLOCK], states: vec![None; state_slots] }
    }

    fn hash(hash: u32, token: u32) -> u32 {
        hash.wrapping_mul(31).wrapping_add(token)
    }

    fn next(context: impl Iterator<Item = u32>) -> u32 {
        context.fold(Self::START, Self::hash) % 3
    }

    fn compute(&mut self, chunks: &[Chunk], s: &Scheduler) {
        let before = self.states.clone();
        for chunk in chunks {
            for (token, position) in s.tokens(chunk).iter().chain(&chunk.draft).zip(chunk.start..) {
                self.cache[Self::slot(chunk, position)] = *token;
            }
            let Some(own) = chunk.states.saves.last() else { continue };
            assert_eq!(own.tokens, chunk.start + chunk.len + chunk.draft.len());
            assert!(chunk.states.saves.is_sorted_by_key(|save| save.tokens));
            let mut state = chunk.states.from.map_or(Self::START, |slot| before[slot as usize].unwrap());
            for (token, tokens) in s.tokens(chunk).iter().chain(&chunk.draft).zip(chunk.start + 1..) {
                state = Self::hash(state, *token);
                for save in chunk.states.saves.iter().filter(|save| save.tokens == tokens) {
                    self.states[save.slot as usize] = Some(state);
                }
            }
            let context = (0..own.tokens).map(|position| self.cache[Self::slot(chunk, position)]);
            assert_eq!(state, context.fold(Self::START, Self::hash), "a state of other tokens than those cached");
        }
        // Nobody writes what another one reads or writes.
        let slots = |chunk: &Chunk| chunk.states.saves.iter().map(|save| save.slot).collect::<Vec<_>>();
        let mut written: Vec<_> = chunks.iter().flat_map(slots).collect();
        for chunk in chunks {
            let others = chunks.iter().filter(|other| other.id != chunk.id).flat_map(slots);
            assert!(others.into_iter().all(|slot| Some(slot) != chunk.states.from));
        }
        let count = written.len();
        written.sort_unstable();
        written.dedup();
        assert_eq!(written.len(), count);
    }

    /// The right beginning of the chunk's draft, and the token after it; at most `limit`.
    fn sample(&self, chunk: &Chunk, limit: usize) -> Vec<u32> {
        let mut sampled = Vec::new();
        for len in (chunk.start + chunk.len..).take(limit.min(1 + chunk.draft.len())) {
            sampled.push(Self::next((0..len).map(|position| self.cache[Self::slot(chunk, position)])));
            if chunk.draft.get(sampled.len() - 1) != sampled.last() {
                break;
            }
        }
        sampled
    }

    fn slot(chunk: &Chunk, position: usize) -> usize {
        chunk.blocks[position / BLOCK] as usize * BLOCK + position % BLOCK
    }
}

#[derive(Debug, Clone)]
struct FakeRequest {
    prompt: Vec<u32>,
    answer: usize,
    priority: i32,
    arrives: usize,
    leaves: Option<usize>,
    pauses: Option<(usize, usize)>,
    /// The lengths of its drafts, one after the other.
    drafts: Vec<usize>,
}

fn requests() -> impl Strategy<Value = Vec<FakeRequest>> {
    // Few different tokens make many common prefixes.
    let prompt = prop::collection::vec(0u32..2, 1..20);
    let pauses = prop::option::of((0usize..40, 1usize..20));
    let drafts = prop::collection::vec(0usize..10, 1..4);
    let leaves = prop::option::weighted(0.2, 0usize..40);
    let request = (prompt, 1usize..12, -1i32..2, 0usize..30, leaves, pauses, drafts);
    let request = request.prop_map(|(prompt, answer, priority, arrives, leaves, pauses, drafts)| FakeRequest {
        prompt,
        answer,
        priority,
        arrives,
        leaves,
        pauses,
        drafts,
    });
    prop::collection::vec(request, 1..16)
}

proptest! {
    /// Random arrivals, lengths, priorities, pauses, drafts and departures, in caches that hold little more
    /// than one sequence: every answer is the one that the sequence would get alone.
    #[test]
    fn answers_do_not_depend_on_what_else_runs(
        requests in requests(),
        cache_blocks in 8usize..20,
        state_slots in prop_oneof![Just(0), 1usize..12],
        max_running in 1usize..8,
        max_batched_tokens in 1usize..30,
        pace in 1usize..6,
    ) {
        let mut s = recurrent(max_running, max_batched_tokens, cache_blocks, state_slots);
        let mut decoder = FakeDecoder::new(cache_blocks, state_slots);
        let mut answers: Vec<Option<Vec<u32>>> = vec![None; requests.len()];
        for time in 0..3000 {
            for (id, request) in requests.iter().enumerate() {
                let sequence = id as SequenceId;
                if request.arrives == time {
                    let (tokens, priority) = (request.prompt.clone(), request.priority);
                    s.add(sequence, Arrival { tokens, priority, ..Arrival::default() });
                    answers[id] = Some(Vec::new());
                }
                if request.leaves == Some(time) {
                    s.remove(sequence);
                }
                let (from, len) = request.pauses.unwrap_or_default();
                s.set_paused(sequence, (from..from + len).contains(&time));
            }
            let chunks = s.schedule(|_| pace);
            decoder.compute(&chunks, &s);
            let streams = chunks.iter().filter(|chunk| chunk.len == 1 && chunk.samples).count();
            let rows: usize = chunks.iter().map(|chunk| chunk.len + chunk.draft.len()).sum();
            prop_assert!(rows <= streams + max_batched_tokens);
            for chunk in &chunks {
                let request = &requests[chunk.id as usize];
                let answer = answers[chunk.id as usize].as_mut().unwrap();
                let left = request.answer - answer.len();
                let sampled = if chunk.samples { decoder.sample(chunk, left) } else { Vec::new() };
                s.computed(chunk, &sampled);
                answer.extend(sampled);
                if answer.len() == request.answer {
                    s.remove(chunk.id);
                }
                if chunk.samples {
                    let len = request.drafts[answer.len() % request.drafts.len()].min(request.answer - answer.len());
                    // Of what may come, the first tokens are often right.
                    let mut known: Vec<u32> = request.prompt.iter().chain(&*answer).copied().collect();
                    for i in 0..len {
                        known.push((FakeDecoder::next(known.iter().copied()) + u32::from(i > 2)) % 3);
                    }
                    s.set_draft(chunk.id, known.split_off(known.len() - len));
                }
            }
            prop_assert!(s.running() <= max_running);
        }
        for (request, answer) in requests.iter().zip(answers) {
            let answer = answer.unwrap();
            let mut alone = request.prompt.clone();
            for _ in 0..request.answer {
                alone.push(FakeDecoder::next(alone.iter().copied()));
            }
            let alone = &alone[request.prompt.len()..];
            prop_assert_eq!(&answer, &alone[..answer.len()]);
            let left = request.leaves.is_some_and(|leaves| leaves >= request.arrives);
            prop_assert!(left || answer.len() == request.answer, "{:?} ended early", request);
        }
        prop_assert_eq!((s.used_blocks(), s.used_states(), s.running()), (0, 0, 0));
        prop_assert!(s.idle_states() <= state_slots);
    }
}
