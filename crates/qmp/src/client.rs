//! The connection: a task that reads, a task that writes, and the calls that wait between them.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{broadcast, mpsc, oneshot},
    task::AbortHandle,
};

use crate::{
    CommandError, Error, Event, Greeting, Result, Version,
    line::{self, LINE_BYTES_MAX},
    message::Message,
};

/// How long a monitor may take to greet. QEMU greets at once, unless another client holds the monitor.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Events kept for a receiver that does not read. A migration makes about 20 and one per round.
const EVENTS_KEPT: usize = 1024;
/// Requests on their way to the writer. With out-of-band commands on, QEMU itself queues 8.
const REQUESTS_QUEUED: usize = 8;

type Outcome = Result<Value, CommandError>;

/// A connection to one monitor. Clones share it; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct Qmp {
    connection: Arc<Connection>,
}

#[derive(Debug)]
struct Connection {
    greeting: Greeting,
    state: Arc<State>,
    requests: mpsc::Sender<Vec<u8>>,
    next_id: AtomicU64,
    reader: AbortHandle,
}

/// What the reading task and the callers share.
#[derive(Debug)]
struct State(Mutex<Phase>);

#[derive(Debug)]
enum Phase {
    Open {
        waiting: HashMap<u64, oneshot::Sender<Outcome>>,
        events: broadcast::Sender<Event>,
    },
    Closed {
        reason: String,
    },
}

impl Qmp {
    /// Connects to the monitor that listens at `path`, and continues as [`Qmp::over`].
    ///
    /// # Errors
    /// [`Error::Connect`], and those of [`Qmp::over`].
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let stream = UnixStream::connect(path).await.map_err(|source| Error::Connect {
            path: path.to_owned(),
            source,
        })?;
        Self::over(stream).await
    }

    /// Reads the greeting of the monitor at the other end and leaves negotiation mode, with out-of-band commands on where
    /// QEMU offers them.
    ///
    /// # Errors
    /// [`Error::Greeting`], or why the negotiation failed.
    pub async fn over(stream: UnixStream) -> Result<Self> {
        let (read_half, write_half) = stream.into_split();
        let mut reader = BufReader::new(read_half);
        let greeting = tokio::time::timeout(GREETING_TIMEOUT, read_greeting(&mut reader))
            .await
            .unwrap_or_else(|_| Err(format!("nothing came within {} s", GREETING_TIMEOUT.as_secs())))
            .map_err(|reason| Error::Greeting { reason })?;

        let state = Arc::new(State(Mutex::new(Phase::Open {
            waiting: HashMap::new(),
            events: broadcast::Sender::new(EVENTS_KEPT),
        })));
        let (requests, queue) = mpsc::channel(REQUESTS_QUEUED);
        let writer = tokio::spawn(write_requests(write_half, queue, state.clone())).abort_handle();
        let shared = state.clone();
        let reader = tokio::spawn(async move {
            read_messages(reader, shared).await;
            // With both halves the socket closes, and the monitor takes another client.
            writer.abort();
        });
        let reader = reader.abort_handle();
        let qmp = Self {
            connection: Arc::new(Connection {
                greeting,
                state,
                requests,
                next_id: AtomicU64::new(1),
                reader,
            }),
        };
        let enable: &[&str] = if qmp.connection.greeting.out_of_band {
            &["oob"]
        } else {
            &[]
        };
        let negotiate = qmp.execute("qmp_capabilities", json!({ "enable": enable }));
        match tokio::time::timeout(GREETING_TIMEOUT, negotiate).await {
            Ok(answer) => answer.map(|_| qmp),
            Err(_) => Err(Error::Greeting {
                reason: "it greeted and then fell silent".to_owned(),
            }),
        }
    }

    /// The version in the greeting.
    pub fn version(&self) -> &Version {
        &self.connection.greeting.version
    }

    /// Whether the connection has ended: every later call fails with [`Error::Closed`].
    pub fn is_closed(&self) -> bool {
        matches!(&*self.connection.state.lock(), Phase::Closed { .. })
    }

    /// The events from now on. Every receiver gets every event.
    pub fn events(&self) -> Events {
        let receiver = match &*self.connection.state.lock() {
            Phase::Open { events, .. } => events.subscribe(),
            Phase::Closed { .. } => broadcast::Sender::new(1).subscribe(),
        };
        Events {
            receiver,
            state: self.connection.state.clone(),
        }
    }

    /// Executes a command by name; the typed methods are built on this. `arguments` is an object, or `Null` for none.
    ///
    /// It waits as long as QEMU takes, and the main loop of a QEMU that is stuck in a switchover takes for ever: put a
    /// timeout around it where that can be. Dropping the future does not undo the command.
    ///
    /// # Errors
    /// [`Error::Refused`] with QEMU's reason, or [`Error::Closed`].
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        self.request("execute", command, arguments).await
    }

    /// Executes a command ahead of all others, outside QEMU's main loop (`exec-oob`). Few commands allow it.
    ///
    /// # Errors
    /// As for [`Qmp::execute`]; a QEMU that offered no out-of-band execution refuses.
    pub async fn execute_out_of_band(&self, command: &str, arguments: Value) -> Result<Value> {
        self.request("exec-oob", command, arguments).await
    }

    async fn request(&self, verb: &str, command: &str, arguments: Value) -> Result<Value> {
        let connection = &*self.connection;
        let id = connection.next_id.fetch_add(1, Ordering::Relaxed);
        let mut request = json!({ verb: command, "id": id });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let mut line = request.to_string().into_bytes();
        line.push(b'\n');

        let outcome = connection.state.expect_reply(id)?;
        // Where the writer or the reader ended, `expect_reply`'s sender is dropped, so waiting for the outcome says why.
        let _ = connection.requests.send(line).await;
        match outcome.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Error::Refused {
                command: command.to_owned(),
                error,
            }),
            Err(_) => Err(connection.state.closed_error()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
        self.state.close("this client ended it");
    }
}

/// A receiver of events.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<Event>,
    state: Arc<State>,
}

impl Events {
    /// The next event. Dropping the future loses none.
    ///
    /// # Errors
    /// [`Error::Closed`] once the connection ended and all its events were read; [`Error::EventsLost`] if they were
    /// not read for so long that some were dropped (the next call goes on after them).
    pub async fn next(&mut self) -> Result<Event> {
        match self.receiver.recv().await {
            Ok(event) => Ok(event),
            Err(broadcast::error::RecvError::Lagged(count)) => Err(Error::EventsLost { count }),
            Err(broadcast::error::RecvError::Closed) => Err(self.state.closed_error()),
        }
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect_reply(&self, id: u64) -> Result<oneshot::Receiver<Outcome>> {
        let (sender, receiver) = oneshot::channel();
        match &mut *self.lock() {
            Phase::Open { waiting, .. } => {
                waiting.insert(id, sender);
                Ok(receiver)
            }
            Phase::Closed { reason } => Err(Error::Closed { reason: reason.clone() }),
        }
    }

    fn deliver(&self, message: Message) {
        let Phase::Open { waiting, events } = &mut *self.lock() else {
            return;
        };
        match message {
            Message::Reply { id, outcome } => match id.and_then(|id| waiting.remove(&id)) {
                // The caller may have stopped waiting.
                Some(caller) => drop(caller.send(outcome)),
                None => tracing::warn!(?id, ?outcome, "QMP reply to no request of ours"),
            },
            Message::Event(event) => {
                tracing::debug!(?event, "QMP event");
                // Fails when nobody listens, which is fine.
                let _ = events.send(event);
            }
            Message::Greeting(_) | Message::Unknown => {
                tracing::debug!(?message, "QMP message ignored")
            }
        }
    }

    /// Drops all waiting calls and event senders, which wakes them; the first reason stands.
    fn close(&self, reason: &str) {
        let phase = &mut *self.lock();
        if let Phase::Open { .. } = phase {
            *phase = Phase::Closed {
                reason: reason.to_owned(),
            };
        }
    }

    fn closed_error(&self) -> Error {
        let reason = match &*self.lock() {
            Phase::Closed { reason } => reason.clone(),
            Phase::Open { .. } => "the reply was dropped".to_owned(),
        };
        Error::Closed { reason }
    }
}

async fn read_greeting(reader: &mut BufReader<OwnedReadHalf>) -> Result<Greeting, String> {
    let mut line = Vec::new();
    match line::read(reader, &mut line, LINE_BYTES_MAX).await {
        Ok(true) => {}
        Ok(false) => return Err("the connection was closed".to_owned()),
        Err(error) => return Err(error.to_string()),
    }
    match Message::parse(&line) {
        Ok(Message::Greeting(greeting)) => Ok(greeting),
        Ok(_) | Err(_) => Err("the first line was something else".to_owned()),
    }
}

async fn read_messages(mut reader: BufReader<OwnedReadHalf>, state: Arc<State>) {
    let mut line = Vec::new();
    let reason = loop {
        match line::read(&mut reader, &mut line, LINE_BYTES_MAX).await {
            Ok(true) => {}
            Ok(false) => break "QEMU closed it; it has probably ended".to_owned(),
            Err(error) => break error.to_string(),
        }
        match Message::parse(&line) {
            Ok(message) => state.deliver(message),
            Err(error) => break format!("QEMU sent a line that is not JSON: {error}"),
        }
    };
    state.close(&reason);
}

async fn write_requests(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>, state: Arc<State>) {
    while let Some(line) = queue.recv().await {
        if let Err(error) = writer.write_all(&line).await {
            state.close(&format!("QEMU does not take requests: {error}"));
            return;
        }
    }
}
