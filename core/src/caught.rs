//! This module catches the panics of code and values that the application provides. The client is
//! answered `internal`, and the node logs and counts the panic.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::event::ChannelName;
use crate::observe::Metrics;
use crate::refusal::Refusal;

/// A call names the handler's method, its channel and its event. It holds no payload, because
/// payloads never reach a log.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) metrics: &'a Metrics,
    pub(crate) method: &'static str,
    pub(crate) channel: &'a ChannelName,
    pub(crate) event: Option<&'a str>,
}

impl Call<'_> {
    /// Runs code that does not wait, and turns its panic into a refusal.
    pub(crate) fn run<T>(&self, act: impl FnOnce() -> T) -> Result<T, Refusal> {
        catch_unwind(AssertUnwindSafe(act)).map_err(|panic| self.panicked(panic))
    }

    /// Runs a method to its end. This covers `begin` as well, because the method may panic before
    /// its first `await`, too.
    pub(crate) async fn wait<T, F>(&self, begin: impl FnOnce() -> F) -> Result<T, Refusal>
    where
        F: Future<Output = T> + Unpin,
    {
        let mut running = Running {
            future: Some(self.run(begin)?),
            call: *self,
        };
        std::future::poll_fn(|cx| running.poll(cx)).await
    }

    /// Returns the method's answer. The application's own error goes to the log, and to no client.
    pub(crate) fn answer<T>(&self, answer: Result<T, Refusal>) -> Result<T, Refusal> {
        answer.map_err(|mut refusal| {
            if let Some(error) = refusal.take_cause() {
                tracing::error!(
                    channel = %self.channel,
                    event = self.event,
                    method = self.method,
                    error,
                    "a handler failed; its client is answered 'internal'"
                );
            }
            refusal
        })
    }

    fn panicked(&self, panic: Box<dyn Any + Send>) -> Refusal {
        // The panic hook writes the panic's text, which may hold what the client sent.
        drop_quietly(panic);
        self.metrics.handler_panics.inc();
        tracing::error!(
            channel = %self.channel,
            event = self.event,
            method = self.method,
            "a handler panicked; its client is answered 'internal', and nothing else is disturbed"
        );
        Refusal::internal("the application failed at this: repeating it will not help")
    }
}

/// This future runs a handler's method. Its drop may panic, as the method itself may.
struct Running<'a, F> {
    future: Option<F>,
    call: Call<'a>,
}

impl<F: Future + Unpin> Running<'_, F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<F::Output, Refusal>> {
        let future = &mut self.future;
        let polled = self.call.run(|| {
            let running = future.as_mut().map(|future| Pin::new(future).poll(cx));
            // The call drops the finished future here, where it catches the panics of that drop.
            if matches!(running, Some(Poll::Ready(_))) {
                *future = None;
            }
            running
        });
        match polled {
            Ok(Some(Poll::Ready(done))) => Poll::Ready(Ok(done)),
            Ok(Some(Poll::Pending)) => Poll::Pending,
            Ok(None) => Poll::Ready(Err(Refusal::internal("the application has been asked already"))),
            Err(refusal) => Poll::Ready(Err(refusal)),
        }
    }
}

impl<F> Drop for Running<'_, F> {
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            // No caller waits for an answer any more.
            let _ = self.call.run(|| drop(future));
        }
    }
}

/// This type holds a value of the application. The last clone drops the value, wherever it is, and
/// that drop may panic.
#[derive(Clone)]
pub(crate) struct Details(Option<Arc<dyn Any + Send + Sync>>);

impl Details {
    pub(crate) fn new(details: impl Any + Send + Sync) -> Self {
        Self(Some(Arc::new(details)))
    }

    pub(crate) fn downcast_ref<T: Any>(&self) -> Option<&T> {
        self.0.as_deref()?.downcast_ref()
    }
}

impl Drop for Details {
    fn drop(&mut self) {
        if let Some(details) = self.0.take() {
            drop_quietly(details);
        }
    }
}

fn drop_quietly<T>(value: T) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        // The payload of a panic may panic in its own drop again. Forgetting it ends the chain.
        std::mem::forget(again);
    }
}
