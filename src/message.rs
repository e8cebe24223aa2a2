//! Messages of a conversation.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The author of a [`Message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// A tool that the model has called.
    Tool,
    /// Instructions of the program's developer, which some models distinguish from the system's. Templates that do not
    /// know the role treat it as any other unknown role.
    Developer,
}

impl Role {
    /// The role's name in chat templates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
            Self::Developer => "developer",
        }
    }

    /// Whether `name` is the name of a role.
    pub(crate) fn is_known(name: &str) -> bool {
        let known = [Self::System, Self::User, Self::Assistant, Self::Tool, Self::Developer];
        known.iter().any(|role| role.as_str() == name)
    }
}

/// One turn of a conversation, for [`TextModel::chat`](crate::TextModel::chat).
///
/// Content and fields are plain text: nothing in them becomes a control token. Serialized as an object, as in OpenAI's
/// API.
///
/// ```
/// use serde_json::json;
/// use tokenflow::Message;
///
/// let call = json!([{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}]);
/// let turns = [
///     Message::user("What is the weather in Köln?"),
///     Message::assistant("").field("tool_calls", call),
///     Message::tool("Sunny, 21 °C").field("name", "weather"),
/// ];
/// let json = serde_json::to_value(&turns[2]).unwrap();
/// assert_eq!(json, json!({"role": "tool", "content": "Sunny, 21 °C", "name": "weather"}));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Map<String, Value>", try_from = "Map<String, Value>")]
#[non_exhaustive]
pub struct Message {
    /// The author.
    pub role: Role,
    /// The text.
    pub content: String,
    /// Further fields for the chat template: `tool_calls`, `tool_call_id`, `name`, `reasoning_content` …
    /// A field `content` replaces the text: a list of parts, or `null` for no content.
    pub fields: Map<String, Value>,
}

impl From<Message> for Map<String, Value> {
    fn from(message: Message) -> Self {
        let mut map = Map::new();
        map.insert("role".into(), message.role.as_str().into());
        map.insert("content".into(), message.content.into());
        map.extend(message.fields.into_iter().filter(|(name, _)| name != "role"));
        map
    }
}

impl TryFrom<Map<String, Value>> for Message {
    type Error = serde_json::Error;

    fn try_from(mut map: Map<String, Value>) -> Result<Self, Self::Error> {
        let missing = serde::de::Error::missing_field;
        let role = Role::deserialize(map.shift_remove("role").ok_or_else(|| missing("role"))?)?;
        let content = match map.shift_remove("content") {
            Some(Value::String(text)) => text,
            Some(other) => {
                map.insert("content".into(), other);
                String::new()
            }
            None if map.contains_key("tool_calls") => String::new(),
            None => return Err(missing("content")),
        };
        Ok(Self { role, content, fields: map })
    }
}

impl Message {
    /// A message of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), fields: Map::new() }
    }

    /// Adds a field for the chat template. A new value of a field replaces its old one.
    #[must_use]
    pub fn field(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// Instructions for the whole conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// A user's message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// An answer of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// The result of a tool.
    pub fn tool(content: impl Into<String>) -> Self {
        Self::new(Role::Tool, content)
    }

    /// Instructions of the program's developer.
    pub fn developer(content: impl Into<String>) -> Self {
        Self::new(Role::Developer, content)
    }
}
