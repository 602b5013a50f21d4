//! What an application gives us may panic. It is caught here, told to the client as `internal`,
//! logged and counted.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::event::ChannelName;
use crate::observe::Metrics;
use crate::refusal::Refusal;

/// Which call of a handler it is. Payloads never reach a log, so none is here.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) metrics: &'a Metrics,
    pub(crate) method: &'static str,
    pub(crate) channel: &'a ChannelName,
    pub(crate) event: Option<&'a str>,
}

impl Call<'_> {
    /// Runs what cannot wait.
    pub(crate) fn run<T>(&self, act: impl FnOnce() -> T) -> Result<T, Refusal> {
        catch_unwind(AssertUnwindSafe(act)).map_err(|panic| self.panicked(panic))
    }

    /// Runs a method to its end. `begin` is inside as well: what a method does before its first
    /// `await` may panic, too.
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

    /// The method's answer. What is the application's own error goes to the log, and to no client.
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
        // Its text was written by the panic hook; it may hold what the client sent.
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

/// A handler's method under way. Dropped on the way, it may panic like while it runs.
struct Running<'a, F> {
    future: Option<F>,
    call: Call<'a>,
}

impl<F: Future + Unpin> Running<'_, F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<F::Output, Refusal>> {
        let future = &mut self.future;
        let polled = self.call.run(|| {
            let running = future.as_mut().map(|future| Pin::new(future).poll(cx));
            // What it holds goes while panics are caught.
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

/// A value of the application's, whose drop may panic wherever the last of us lets go of it.
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
        // Whatever it is, dropping it has to end somewhere.
        std::mem::forget(again);
    }
}
