//! Two questions on one connection whose answers come in the order of the questions.

use std::future::Future;
use std::pin::pin;

use futures_util::FutureExt;
use tokio::task::unconstrained;

/// The answer to `first`; `None` if the answer to `second`, which was asked after it, comes
/// without one.
///
/// Trap: another thread may bring both answers between a look at `first` and the look at
/// `second`. So `first` is looked at again after `second` has its answer. It is unconstrained,
/// for a task without budget would see an answer that is there as missing.
pub(super) async fn answer_to_the_first<T, U, E>(
    first: impl Future<Output = T>,
    second: impl Future<Output = Result<U, E>>,
) -> Result<Option<T>, E> {
    let mut first = pin!(unconstrained(first));
    tokio::select! {
        // `first` is asked first.
        biased;
        answer = &mut first => Ok(Some(answer)),
        second = second => {
            second?;
            Ok(first.now_or_never())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn both_answers_that_come_between_two_looks_are_seen() {
        let (tell, first) = oneshot::channel();
        let second = async {
            tell.send("first").expect("the first question still waits");
            Ok::<_, ()>("second")
        };
        assert_eq!(answer_to_the_first(first, second).await, Ok(Some(Ok("first"))));
    }

    #[tokio::test]
    async fn a_question_that_is_passed_over_has_no_answer() {
        assert_eq!(
            answer_to_the_first(pending::<()>(), ready(Ok::<_, ()>("second"))).await,
            Ok(None)
        );
    }

    #[tokio::test]
    async fn what_the_second_suffers_is_told() {
        let second = ready(Err::<(), _>("the line broke"));
        assert_eq!(answer_to_the_first(pending::<()>(), second).await, Err("the line broke"));
    }
}
