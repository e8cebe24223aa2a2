use std::{env, fmt, path::PathBuf, process, str::FromStr};

use super::{Result, models};

/// The command line of an example, as `--help` shows it.
pub struct Usage {
    /// A sentence or more on what the program does.
    pub about: &'static str,
    /// The command that runs it, up to its arguments.
    pub command: &'static str,
    /// The words after the options, `[QUESTION]` for example; empty for none.
    pub words: &'static str,
    /// Whether there is an option `--model`.
    pub model: bool,
    /// Other options with a value: `--name VALUE` and a description.
    pub options: &'static [(&'static str, &'static str)],
}

/// Parsed arguments.
pub struct Args {
    options: Vec<(String, String)>,
    text: Option<String>,
}

const MODEL: (&str, &str) =
    ("--model PATH", "a Hugging Face directory or a GGUF file; without it SmolLM2-135M-Instruct, fetched on first use");
const HELP: (&str, &str) = ("--help", "show this help");

impl Args {
    /// Parses the arguments of this process. Prints the help and ends the process if they ask for it or are wrong.
    pub fn parse(usage: &Usage) -> Self {
        Self::from_words(usage, env::args().skip(1)).unwrap_or_else(|problem| match problem {
            None => {
                println!("{}", usage.help());
                process::exit(0)
            }
            Some(problem) => {
                eprintln!("error: {problem}\n\n{}", usage.help());
                process::exit(2)
            }
        })
    }

    /// # Errors
    /// `None` asks for the help; else the problem.
    fn from_words(usage: &Usage, args: impl IntoIterator<Item = String>) -> Result<Self, Option<String>> {
        let (mut args, mut options, mut words) = (args.into_iter(), Vec::new(), Vec::new());
        while let Some(arg) = args.next() {
            if matches!(arg.as_str(), "-h" | "--help") {
                return Err(None);
            } else if arg == "--" {
                words.extend(args.by_ref());
            } else if arg.starts_with("--") {
                let (name, value) = match arg.split_once('=') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (arg, None),
                };
                if !usage.options().any(|(option, _)| option.split(' ').next() == Some(&name)) {
                    return Err(Some(format!("there is no option {name}")));
                }
                let value = value.or_else(|| args.next()).ok_or_else(|| Some(format!("{name} needs a value")))?;
                options.push((name, value));
            } else {
                words.push(arg);
            }
        }
        if usage.words.is_empty() && !words.is_empty() {
            return Err(Some(format!("unexpected argument {:?}", words[0])));
        }
        Ok(Self { options, text: (!words.is_empty()).then(|| words.join(" ")) })
    }

    /// The value of an option.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().rfind(|(option, _)| option == name).map(|(_, value)| value.as_str())
    }

    /// The value of an option that is a number.
    ///
    /// # Errors
    /// If the value does not parse.
    pub fn number<T: FromStr<Err: fmt::Display>>(&self, name: &str, default: T) -> Result<T> {
        let parsed = self.option(name).map(|value| value.parse().map_err(|error| format!("{name} {value}: {error}")));
        Ok(parsed.transpose()?.unwrap_or(default))
    }

    /// The words after the options, joined by spaces.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// The path of `--model`, or of SmolLM2-135M-Instruct.
    ///
    /// # Errors
    /// If that small model is neither in a cache nor can be downloaded.
    pub async fn model(&self) -> Result<PathBuf> {
        match self.option("--model") {
            Some(path) => Ok(path.into()),
            None => Ok(models::smollm2().await?),
        }
    }
}

impl Usage {
    fn options(&self) -> impl Iterator<Item = &(&'static str, &'static str)> {
        self.model.then_some(&MODEL).into_iter().chain(self.options)
    }

    fn help(&self) -> String {
        let words = if self.words.is_empty() { String::new() } else { format!(" {}", self.words) };
        let mut help = format!("{}\n\nUsage: {} [OPTIONS]{words}\n\nOptions:", self.about, self.command);
        for (option, description) in self.options().chain([&HELP]) {
            help += &format!("\n  {option:20} {description}");
        }
        help
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: Usage = Usage {
        about: "Answers.",
        command: "cargo run --",
        words: "[QUESTION]",
        model: true,
        options: &[("--system TEXT", "instructions")],
    };

    fn parse(words: &[&str]) -> Result<Args, Option<String>> {
        Args::from_words(&USAGE, words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn options_and_words() {
        let args = parse(&["--model=a b", "what", "is", "--system", "Be brief.", "--", "--this"]).ok().unwrap();
        assert_eq!(args.option("--model"), Some("a b"));
        assert_eq!(args.option("--system"), Some("Be brief."));
        assert_eq!(args.text(), Some("what is --this"));
    }

    #[test]
    fn help_and_wrong_options() {
        assert!(parse(&["-h"]).is_err_and(|problem| problem.is_none()));
        assert!(parse(&["--modle", "x"]).is_err_and(|problem| problem.unwrap().contains("--modle")));
        assert!(parse(&["--model"]).is_err_and(|problem| problem.unwrap().contains("needs a value")));
        assert!(USAGE.help().contains("--system TEXT") && USAGE.help().contains("--model PATH"));
    }
}
