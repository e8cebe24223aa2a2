//! HTTP requests for parts of files.

use hf_hub::api::sync::ApiError;
use ureq::{Agent, http::header};

use super::{CONNECT, STALL};

/// An HTTP client that resumes downloads with range requests.
pub struct RangeClient {
    agent: Agent,
    token: Option<String>,
}

impl RangeClient {
    pub fn new(token: Option<String>) -> Self {
        let config = Agent::config_builder()
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(STALL))
            // A range of a compressed body could not be appended to a partial file.
            .accept_encoding("identity")
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost);
        Self { agent: config.build().into(), token }
    }

    /// Requests a file from byte `start` on.
    pub fn get(&self, url: &str, start: u64) -> Result<ureq::http::Response<ureq::Body>, ApiError> {
        let mut request = self.agent.get(url).header(header::RANGE, format!("bytes={start}-"));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        Ok(request.call().map_err(Box::new)?)
    }
}
