//! Where the fields of a GGUF file are, so that an edit changes a count, a type or an offset and leaves the rest whole.

use std::ops::Range;

/// The length of a value of each type but strings (8) and arrays (9).
const SIZES: [usize; 13] = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Reads a well-formed file and notes its fields.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    found: Vec<Range<usize>>,
}

/// The byte ranges of the header's numbers and texts, in order.
pub fn fields(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut fields = Fields { bytes, at: 4, found: Vec::new() };
    // A golden file is whole; what follows an odd place is left out.
    let _ = fields.header();
    fields.found
}

impl Fields<'_> {
    fn header(&mut self) -> Option<()> {
        self.number(4)?;
        let (tensors, pairs) = (self.number(8)?, self.number(8)?);
        for _ in 0..pairs {
            self.text()?;
            let kind = self.number(4)? as u32;
            self.value(kind)?;
        }
        for _ in 0..tensors {
            self.text()?;
            let dimensions = self.number(4)?;
            for _ in 0..dimensions {
                self.number(8)?;
            }
            self.number(4)?;
            self.number(8)?;
        }
        Some(())
    }

    fn value(&mut self, kind: u32) -> Option<()> {
        match kind {
            STRING => self.text(),
            ARRAY => {
                let kind = self.number(4)? as u32;
                let count = self.number(8)?;
                (0..count).try_for_each(|_| self.value(kind))
            }
            _ => self.number(*SIZES.get(kind as usize)?).map(drop),
        }
    }

    fn text(&mut self) -> Option<()> {
        let len = self.number(8)? as usize;
        self.take(len).map(drop)
    }

    fn number(&mut self, size: usize) -> Option<u64> {
        let range = self.take(size)?;
        let mut value = [0; 8];
        value[..size].copy_from_slice(&self.bytes[range]);
        Some(u64::from_le_bytes(value))
    }

    fn take(&mut self, len: usize) -> Option<Range<usize>> {
        let range = self.at..self.at.checked_add(len)?;
        self.bytes.get(range.clone())?;
        self.at = range.end;
        self.found.push(range.clone());
        Some(range)
    }
}
