//! A trie of tokens by their bytes.

/// Prefixes of tokens, by length. Continuations of a prefix are adjacent and sorted by their last byte.
pub struct Trie(Vec<TrieNode>);

#[derive(Clone, Copy)]
struct TrieNode {
    last_byte: u8,
    /// Its first continuation; the last one is before the first of the next node.
    longer: u32,
    /// The token that it is, or [`NO_TOKEN`].
    token: u32,
}

const NO_TOKEN: u32 = u32::MAX;

impl Trie {
    /// A trie of tokens and their values. Of equal tokens the last one counts.
    pub fn new(mut tokens: Vec<(&[u8], u32)>) -> Self {
        tokens.sort_by_key(|(bytes, _)| *bytes);
        let mut this = Self(vec![TrieNode { last_byte: 0, longer: 0, token: NO_TOKEN }]);
        // Which tokens begin with a node's prefix, and its length.
        let mut ranges = vec![(0, tokens.len(), 0)];
        let mut at = 0;
        while at < this.0.len() {
            let (mut from, end, len) = ranges[at];
            this.0[at].longer = this.0.len() as u32;
            while from < end && tokens[from].0.len() == len {
                this.0[at].token = tokens[from].1;
                from += 1;
            }
            while from < end {
                let last_byte = tokens[from].0[len];
                let same = tokens[from..end].partition_point(|(bytes, _)| bytes[len] == last_byte);
                this.0.push(TrieNode { last_byte, longer: 0, token: NO_TOKEN });
                ranges.push((from, from + same, len + 1));
                from += same;
            }
            at += 1;
        }
        this.0.shrink_to_fit();
        this
    }

    /// Lengths and values of the tokens that a text begins with, the shortest first.
    pub fn at_start_of<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, u32)> + 'a {
        let mut node = Some(0);
        (1..)
            .zip(text)
            .map_while(move |(len, byte)| {
                node = self.longer(node?, *byte);
                node.map(|node| (len, self.0[node].token))
            })
            .filter(|(_, token)| *token != NO_TOKEN)
    }

    /// The value of a text that is a token.
    pub fn get(&self, text: &[u8]) -> Option<u32> {
        let node = text.iter().try_fold(0, |node, byte| self.longer(node, *byte))?;
        Some(self.0[node].token).filter(|token| *token != NO_TOKEN)
    }

    /// A prefix with one more byte.
    fn longer(&self, node: usize, byte: u8) -> Option<usize> {
        let from = self.0[node].longer as usize;
        let end = self.0.get(node + 1).map_or(self.0.len(), |next| next.longer as usize);
        let at = self.0[from..end].binary_search_by_key(&byte, |node| node.last_byte).ok()?;
        Some(from + at)
    }
}
