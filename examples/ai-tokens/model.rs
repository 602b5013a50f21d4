//! A language model as small as one can be: it has read this repository's documentation, and goes on from the last two words as those texts do.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

const TEXTS: [&str; 5] = [
    include_str!("../../README.md"),
    include_str!("../../ARCHITECTURE.md"),
    include_str!("../../docs/guarantees.md"),
    include_str!("../../docs/protocol.md"),
    include_str!("../../docs/deploying.md"),
];

/// The one of this server, once somebody has asked for it.
pub static OWN: LazyLock<Model> = LazyLock::new(Model::train);

/// What comes after two words, and how sentences begin.
pub struct Model {
    after_two: HashMap<(&'static str, &'static str), Vec<&'static str>>,
    beginnings: Vec<[&'static str; 2]>,
}

impl Model {
    /// Reads the texts: some milliseconds.
    pub fn train() -> Self {
        let mut model = Self {
            after_two: HashMap::new(),
            beginnings: Vec::new(),
        };
        for text in TEXTS {
            let mut code = false;
            let prose: Vec<&str> = text
                .lines()
                .filter(|line| {
                    code ^= line.starts_with("```");
                    // Tables, headings and code are no sentences.
                    !code && !line.starts_with(['|', '#', '`', '[', ' ']) && !line.contains("**:")
                })
                .flat_map(|line| line.trim_start_matches("- ").split_whitespace())
                .map(|word| word.trim_matches(['*', '`']))
                .filter(|word| !word.is_empty())
                .collect();
            for three in prose.windows(3) {
                model.after_two.entry((three[0], three[1])).or_default().push(three[2]);
                if ends(three[0]) && three[1].starts_with(char::is_uppercase) {
                    model.beginnings.push([three[1], three[2]]);
                }
            }
        }
        model
    }

    /// An answer of some sentences, word by word. The first sentence begins, if one can, with a word of the question.
    pub fn answer(&self, question: &str) -> impl Iterator<Item = &'static str> + use<'_> {
        let mut dice = RandomState::new().hash_one(question) | 1;
        let mut throw = move |sides: usize| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            (dice % sides.max(1) as u64) as usize
        };
        let asked: Vec<String> = question
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| word.len() > 2)
            .map(str::to_lowercase)
            .collect();
        let about = |[one, two]: &&[&str; 2]| {
            asked
                .iter()
                .any(|word| one.to_lowercase().contains(word.as_str()) || two.to_lowercase().contains(word.as_str()))
        };
        let fitting: Vec<_> = self.beginnings.iter().filter(about).copied().collect();
        let mut next: Vec<&'static str> = Vec::new();
        let mut last = ("", "");
        let mut sentences = 0;
        std::iter::from_fn(move || {
            let word = if let Some(word) = next.pop() {
                word
            } else {
                match self.after_two.get(&last).filter(|_| !ends(last.1)) {
                    Some(words) => words[throw(words.len())],
                    None if sentences >= 7 => return None,
                    None => {
                        sentences += 1;
                        let from = if fitting.is_empty() || sentences > 2 {
                            &self.beginnings
                        } else {
                            &fitting
                        };
                        let [one, two] = *from.get(throw(from.len()))?;
                        next.push(two);
                        one
                    }
                }
            };
            last = (last.1, word);
            Some(word)
        })
    }
}

fn ends(word: &str) -> bool {
    word.ends_with(['.', ':', '!', '?'])
}
