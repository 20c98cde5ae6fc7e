// Runs of jobs that train one frozen base, each in its own steps: in every round the next micro-batch of each goes through the layers
// together, so that a weight is decoded once for all of them. A job ends when it ends; the others go on. Most groups have one job.
import EdgeFormats
import EdgeModel
import EdgeTensor

package final class TrainingGroup {
    package let runs: [TrainingRun]
    private let model: BaseModel
    private let step: TrainStep
    private let arena: Arena
    private let smoothingSamples: [TokenizedSample]
    /// Numbers of the runs that have not ended.
    private var active: [Int]

    /// - Parameters:
    ///   - memory: of the jobs, in their order.
    ///   - smoothingSamples: what int8 products are smoothed by: the same for every job of a model, so that jobs can share weights.
    ///   - spillDirectory: where layer inputs go when the plan has them in a file.
    package init(
        _ jobs: [TrainingRun.Job], model: BaseModel, memory: MemoryModel, shape: StepShape, kernels: KernelSet,
        smoothingSamples: [TokenizedSample], spillDirectory: String
    ) throws {
        precondition(jobs.count == memory.layouts.count)
        self.model = model
        self.smoothingSamples = smoothingSamples
        let arena = try Arena(capacity: memory.arena(shape))
        let step = try TrainStep(model: model, memory: memory, shape: shape, kernels: kernels, arena: arena, spillDirectory: spillDirectory)
        runs = try jobs.enumerated().map { number, job in
            try TrainingRun(
                job, number: number, of: step, model: model, optimizer: memory.optimizerState(job: number, shape),
                gradients: shape.gradients, longest: shape.longestSample, arena: arena)
        }
        precondition(arena.used == arena.capacity, "the plan has \(arena.capacity.bytes) bytes, the step took \(arena.used.bytes)")
        self.step = step
        self.arena = arena
        active = Array(jobs.indices)
    }

    /// - Parameter ended: called once for each job, when it ends; what it throws ends all.
    /// - Throws: beside that, what no job can go on without: `FileError` of the weights or of spilled layer inputs.
    package func run(ended: (_ job: Int, Result<RunOutcome, any Error>) throws -> Void) throws {
        func end(_ job: Int, _ result: Result<RunOutcome, any Error>) throws {
            active.removeAll { $0 == job }
            try ended(job, result)
        }
        // Before anything else is in the memory that reading an adapter takes.
        for job in active {
            if case .failure(let error) = Result(catching: runs[job].load) { try end(job, .failure(error)) }
        }
        if !active.isEmpty { try step.measureSmoothing(smoothingSamples) }
        while !active.isEmpty {
            var work: [JobMicroBatch] = []
            for job in active {
                switch Result(catching: runs[job].next) {
                case .success(.microBatch(let batch)): work.append(batch)
                case .success(.ended(let outcome)): try end(job, .success(outcome))
                case .failure(let error): try end(job, .failure(error))
                }
            }
            guard !work.isEmpty else { continue }
            var failures: [Int: any Error] = [:]
            try step.accumulate(&work) { layer, batch in
                guard failures[batch.job] == nil else { return }
                do { try runs[batch.job].finish(layer: layer, batch) } catch { failures[batch.job] = error }
            }
            for batch in work where failures[batch.job] == nil {
                do { try runs[batch.job].take(batch) } catch { failures[batch.job] = error }
            }
            for (job, error) in failures.sorted(by: { $0.key < $1.key }) { try end(job, .failure(error)) }
        }
    }

    /// The adapter of a job that has ended, as files have it. When no other goes on, all other memory is given back first.
    package func takeTensors(of job: Int) -> [AdapterTensor] {
        if active.isEmpty {
            model.releaseResidentWeights()
            let last = runs[runs.count - 1].adapters
            arena.discard(after: last.parameters + last.parameterCount)
        }
        return runs[job].adapters.tensors(model.spec)
    }
}
