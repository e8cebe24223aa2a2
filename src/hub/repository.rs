//! The names of repositories and files, and the files that make up a model.

use std::path::{Path, PathBuf};

use hf_hub::Cache;

use crate::{Error, Result, weights::WeightFiles};

/// Files that a model needs besides its weights, where the repository has them.
const SIDE_FILES: [&str; 12] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    INDEX,
];
const INDEX: &str = "model.safetensors.index.json";

/// The files of a repository that make up the model.
pub fn wanted(names: &[String]) -> Vec<&str> {
    let is_copy = |name: &str| name.starts_with("consolidated");
    let names = || names.iter().map(String::as_str);
    // Some repositories hold the weights twice, the second time in their author's own layout.
    let has_standard = names().any(|name| is_weights(name) && !is_copy(name));
    names().filter(|name| SIDE_FILES.contains(name) || is_weights(name) && !(has_standard && is_copy(name))).collect()
}

/// Whether a file holds weights in the safetensors format.
pub fn is_weights(name: &str) -> bool {
    !name.contains('/') && name.ends_with(".safetensors")
}

/// The snapshot folder of an earlier, complete download.
pub fn cached_model(cache: &Cache, repo: &str) -> Option<PathBuf> {
    let config = cache.model(repo.into()).get("config.json")?;
    let folder = config.parent()?;
    let has_tokenizer = ["tokenizer.json", "merges.txt"].iter().any(|file| folder.join(file).exists());
    let complete = has_tokenizer && has_weights(folder);
    complete.then(|| folder.to_owned())
}

fn has_weights(folder: &Path) -> bool {
    WeightFiles::find(folder).is_ok_and(|files| files.absent.is_empty())
}

/// Refuses repository names that could leave the cache folder.
pub fn check_repo(repo: &str) -> Result<()> {
    if repo.split('/').count() <= 2 && repo.split('/').all(is_name) {
        return Ok(());
    }
    Err(Error::config("repo", format!("{repo:?} is not `owner/name` of letters, digits, `.`, `_` and `-`")))
}

/// Whether a name is one plain path component.
pub fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(is_allowed)
}

/// Refuses file names that would leave the repository, in the cache or on the server.
pub fn check_file(file: &str) -> Result<()> {
    let is_part = |part: &str| !matches!(part, "" | "." | "..");
    let is_allowed = |character: char| !character.is_control() && !r#"\:?#% "#.contains(character);
    if file.split('/').all(is_part) && file.chars().all(is_allowed) {
        return Ok(());
    }
    Err(Error::config("file", format!("{file:?} is not the relative path of a file")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_traversal_in_names_is_refused() {
        for repo in ["gpt2", "owner/name", "Owner-1/na_me.v2"] {
            assert!(check_repo(repo).is_ok(), "{repo}");
        }
        for repo in ["", "/", "a/", "/a", "a/b/c", "..", "a/..", ".a", "a b", "a\\b", "a?b", "ä"] {
            assert!(check_repo(repo).is_err(), "{repo}");
        }
        for file in ["config.json", "a/b.gguf", ".gitattributes"] {
            assert!(check_file(file).is_ok(), "{file}");
        }
        for file in ["", "/etc/passwd", "../a", "a/../b", "a//b", "a/", "./a", "c:\\a", "a?b", "a#b", "a%2e", "a\nb"] {
            assert!(check_file(file).is_err(), "{file}");
        }
    }

    #[test]
    fn wanted_files_are_weights_and_side_files() {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let all =
            names(&["README.md", "config.json", "consolidated.safetensors", "model.safetensors", "onnx/a.safetensors"]);
        assert_eq!(wanted(&all), ["config.json", "model.safetensors"]);
        let only_copy = names(&["consolidated.safetensors"]);
        assert_eq!(wanted(&only_copy), ["consolidated.safetensors"]);
    }
}
