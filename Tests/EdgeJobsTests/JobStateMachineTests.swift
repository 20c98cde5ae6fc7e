import EdgeJobs
import EdgeWire
import Testing

/// Every allowed change; whatever is not here must be refused.
private let allowed: [JobState: [JobTransition: JobState]] = [
    .queued: [.start: .running, .pause: .paused, .cancel: .cancelled, .failed: .failed, .waits: .queued],
    .running: [
        .pause: .pausing, .cancel: .cancelling, .stopped: .queued, .yielded: .queued, .lost: .queued,
        .restarted: .queued, .trained: .succeeded, .failed: .failed, .salvaged: .failed,
        .obstructed: .paused,
    ],
    .pausing: [
        .cancel: .cancelling, .stopped: .paused, .yielded: .paused, .lost: .paused, .restarted: .paused,
        .trained: .succeeded, .failed: .failed, .salvaged: .failed, .obstructed: .paused,
    ],
    .paused: [.resume: .queued, .cancel: .cancelled],
    .cancelling: [
        .stopped: .cancelled, .yielded: .cancelled, .lost: .cancelled, .restarted: .cancelled,
        .failed: .cancelled, .salvaged: .cancelled, .obstructed: .cancelled, .trained: .succeeded,
    ],
]

@Suite struct JobStateMachineTests {
    @Test(arguments: JobState.allCases, JobTransition.allCases)
    func everyStateAndEventHasTheWrittenOutcome(state: JobState, transition: JobTransition) throws {
        if let next = allowed[state]?[transition] {
            #expect(try JobStateMachine.next(state, transition) == next)
        } else {
            #expect(throws: TransitionRefusal(state: state, transition: transition)) {
                try JobStateMachine.next(state, transition)
            }
        }
    }

    @Test func aRefusalIsAConflictThatNamesTheState() {
        let problem = TransitionRefusal(state: .succeeded, transition: .pause).problem
        #expect(problem.kind == .wrongState)
        #expect(problem.status == 409)
        #expect(problem.detail.contains("succeeded"))
    }

    @Test func everyUnfinishedStateCanBeCancelled() {
        for state in JobState.allCases where !state.isFinal && state != .cancelling {
            #expect(throws: Never.self) { try JobStateMachine.next(state, .cancel) }
        }
    }
}
