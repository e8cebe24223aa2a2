//! Which rows of a stored matrix belong to which of the linear maps in it, and in which order.

use std::{iter::StepBy, ops::Range};

use crate::decoder::layout::Layout;

/// The rows of gate and of up in a matrix that is both.
pub fn gate_up_rows(layout: &Layout, inner: usize) -> [StepBy<Range<usize>>; 2] {
    match layout.gate_up_in_turn {
        true => [(0..2 * inner).step_by(2), (1..2 * inner).step_by(2)],
        false => [(0..inner).step_by(1), (inner..2 * inner).step_by(1)],
    }
}

/// Stored rows of heads whose rotary pairs are interleaved, in the order of NeoX-style pairs: first halves, then second
/// halves.
pub fn in_halves(rows: usize, head_dim: usize) -> Vec<usize> {
    let row = |row: usize| {
        let (head, within) = (row / head_dim, row % head_dim);
        let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
        head * head_dim + 2 * pair + half
    };
    (0..rows).map(row).collect()
}

/// The rows of queries, keys and values in a matrix that has all queries first, then all keys, then all values.
pub fn rows_by_kind(widths: [usize; 3]) -> Vec<Vec<usize>> {
    let [queries, keys, values] = widths;
    vec![
        (0..queries).collect(),
        (queries..queries + keys).collect(),
        (queries + keys..queries + keys + values).collect(),
    ]
}

/// The rows of queries, keys and values in a matrix that has for each key head its queries, its key and its value.
pub fn rows_by_head([num_heads, num_kv_heads, _]: [usize; 3], head_dim: usize) -> Vec<Vec<usize>> {
    let group = num_heads / num_kv_heads;
    let rows = |of_group: Range<usize>| {
        let heads =
            (0..num_kv_heads).flat_map(move |kv_head| of_group.clone().map(move |at| kv_head * (group + 2) + at));
        heads.flat_map(|head| head * head_dim..(head + 1) * head_dim).collect()
    };
    vec![rows(0..group), rows(group..group + 1), rows(group + 1..group + 2)]
}
