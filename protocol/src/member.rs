//! Members of a channel.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::payload::Json;
use crate::text::{self, Text, owned};

/// A member of a channel: a user, over all their connections on all nodes. All clients without a
/// user are one member, who is only counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Member<'a> {
    /// The user's id; `null`: the anonymous.
    pub user: Option<Cow<'a, str>>,
    /// How many connections there are; zero only where a member has left.
    pub connections: u32,
    /// What the application says about the user, if it says anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Json"))]
    pub meta: Option<Json<'a>>,
}

impl<'a> Member<'a> {
    /// A member with so many connections. `None`: the anonymous.
    pub fn new(user: Option<impl Into<Cow<'a, str>>>, connections: u32) -> Self {
        Self {
            user: user.map(Into::into),
            connections,
            meta: None,
        }
    }

    /// Says something about the user.
    pub fn with_meta(mut self, meta: Json<'a>) -> Self {
        self.meta = Some(meta);
        self
    }

    /// Returns the same member, borrowed from nothing.
    pub fn into_owned(self) -> Member<'static> {
        Member {
            user: self.user.map(owned),
            connections: self.connections,
            meta: self.meta.map(Json::into_owned),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Member<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct MemberFields<'a> {
            #[serde(borrow)]
            user: Option<Text<'a>>,
            connections: u32,
            #[serde(borrow, default, deserialize_with = "text::present")]
            meta: Option<&'a serde_json::value::RawValue>,
        }
        let fields = MemberFields::deserialize(deserializer)?;
        Ok(Self {
            user: text::text(fields.user),
            connections: fields.connections,
            meta: fields.meta.map(Json::from),
        })
    }
}
