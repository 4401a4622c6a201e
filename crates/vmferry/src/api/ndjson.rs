//! Answers that are streams of JSON lines.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::{Stream, StreamExt};
use serde::Serialize;

use crate::agent::Agent;

/// The items, a line each, until there are no more or the agent ends. When the reader goes away, the items are dropped.
pub(super) fn response<T: Serialize + 'static>(
    agent: &Arc<Agent>,
    items: impl Stream<Item = T> + Send + 'static,
) -> Response {
    let lines = items.map(|item| {
        // Views are plain data and always have a JSON form.
        let mut line = serde_json::to_vec(&item).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    let body = Body::from_stream(lines.take_until(Box::pin(agent.ending())));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}
