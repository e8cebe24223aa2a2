use crate::kernels::quant::packing::{CodeFormat, QuantPanel};

/// Every slice holds these blocks.
#[inline]
pub fn check<C: CodeFormat, const GROUPS: usize>(panel: &QuantPanel<'_>, blocks: usize) {
    let groups = blocks * GROUPS;
    assert!(!C::TABLE || (C::NIBBLES && panel.table.is_some()));
    assert!(panel.codes.len() >= if C::NIBBLES { groups / 2 } else { groups });
    assert!(panel.higher.len() >= (groups * C::HIGHER).div_ceil(8));
    for factors in [Some(panel.scales), panel.offsets].into_iter().flatten() {
        assert!(factors.halves.len() << factors.shared >= blocks);
        assert!(factors.multiples.is_none_or(|multiples| multiples.len() >= blocks));
    }
}
