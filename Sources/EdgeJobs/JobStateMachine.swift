// Which state follows which: a pure value. The store applies it inside the transaction that writes the new state,
// so a state that this table does not allow is never on disk.
import EdgeWire

/// What can happen to a job.
package enum JobTransition: String, CaseIterable, Sendable {
    /// A worker takes it.
    case start
    case pause, resume, cancel
    /// The worker checkpointed and left because it was asked to.
    case stopped
    /// The worker checkpointed and left because memory became short.
    case yielded
    /// It cannot start as the machine is: it stays queued, with the reason.
    case waits
    /// The worker is gone without an answer, and another run is allowed.
    case lost
    /// The daemon started and found the job as it was when the last one ended.
    case restarted
    case trained
    case failed
    /// It failed, and the best adapter until then is published.
    case salvaged
    /// The run cannot go on as the machine is (its disk is full), and its checkpoint stands: a person has to act.
    case obstructed
}

package struct TransitionRefusal: Error, Equatable, Sendable {
    package let state: JobState
    package let transition: JobTransition

    package init(state: JobState, transition: JobTransition) {
        self.state = state
        self.transition = transition
    }

    package var problem: Problem {
        let hint: String? =
            switch (transition, state) {
            case (.resume, .pausing): "it can be resumed once it is paused"
            case (.pause, _) where state.isFinal, (.cancel, _) where state.isFinal, (.resume, _) where state.isFinal:
                "submit it again as a new job"
            default: nil
            }
        return Problem(.wrongState, "a job that is \(state.rawValue) cannot \(transition.rawValue)", hint: hint)
    }
}

package enum JobStateMachine {
    package static func next(_ state: JobState, _ transition: JobTransition) throws(TransitionRefusal) -> JobState {
        switch (state, transition) {
        case (.queued, .start): .running
        case (.queued, .pause): .paused
        case (.queued, .cancel): .cancelled
        case (.queued, .failed): .failed
        case (.queued, .waits): .queued

        case (.running, .pause): .pausing
        case (.running, .cancel): .cancelling
        case (.running, .stopped), (.running, .yielded), (.running, .lost), (.running, .restarted): .queued

        case (.pausing, .cancel): .cancelling
        case (.pausing, .stopped), (.pausing, .yielded), (.pausing, .lost), (.pausing, .restarted): .paused
        case (.running, .obstructed), (.pausing, .obstructed): .paused

        case (.paused, .resume): .queued
        case (.paused, .cancel): .cancelled

        // A failure while it is being cancelled is what was asked for.
        case (.cancelling, .stopped), (.cancelling, .yielded), (.cancelling, .lost), (.cancelling, .restarted),
            (.cancelling, .failed), (.cancelling, .salvaged), (.cancelling, .obstructed):
            .cancelled

        // The artifact is published: a request that came too late does not unmake it.
        case (.running, .trained), (.pausing, .trained), (.cancelling, .trained): .succeeded
        case (.running, .failed), (.pausing, .failed), (.running, .salvaged), (.pausing, .salvaged): .failed

        case (.queued, _), (.running, _), (.pausing, _), (.paused, _), (.cancelling, _), (.cancelled, _), (.failed, _),
            (.succeeded, _):
            throw TransitionRefusal(state: state, transition: transition)
        }
    }
}
