// Which requests are the same to the plan.
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

import edgetuned

@Suite struct RecentPlansTests {
    private static func order(_ change: (inout WorkOrder.TrainOrder) -> Void = { _ in }) -> WorkOrder.TrainOrder {
        var order = WorkOrder.TrainOrder(
            job: "", request: JobRequest(baseModel: "m", datasets: [DatasetReference(path: "d")]), modelPath: "/m", modelDigest: "sha256:1",
            datasetPaths: ["/d"], directory: "", budgetBytes: 100, budgetReason: "the job's", defaultSaveSteps: 10)
        order.availableBytes = 1000
        change(&order)
        return order
    }

    private static func key(
        freeDisk: UInt64 = 1 << 30, modelBytes: UInt64 = 50, _ change: (inout WorkOrder.TrainOrder) -> Void = { _ in }
    ) throws -> RecentPlans.Key {
        try RecentPlans.key(order(change), freeDisk: freeDisk, modelBytes: modelBytes)
    }

    private static let plan = PlanReport(
        pools: [], peakBytes: 1, budgetBytes: 2, choices: [], precision: nil, trainableParameters: 3, samples: 4, heldOutSamples: 0, tooLongSamples: 0,
        tooLongLines: [], totalSteps: 5)

    @Test func whatThePlanDoesNotReadIsNoPartOfIt() throws {
        let key = try Self.key()
        #expect(try Self.key { ($0.request.name, $0.request.priority, $0.request.maxTime) = ("n", -1, "6h") } == key)
        #expect(try Self.key { $0.request.learningRate = 0.5 } == key)
        // Memory that is there, as long as the model's file stays cached; disk of the same magnitude.
        #expect(try Self.key { $0.availableBytes = 150 } == key)
        #expect(try Self.key(freeDisk: 3 << 29) == key)
    }

    @Test func everythingElseIs() throws {
        let directory = try TemporaryDirectory()
        let calibration = directory.path + "/c.json"
        _ = FileManager.default.createFile(atPath: calibration, contents: Data())
        let keys = [
            try Self.key(), try Self.key { $0.availableBytes = 149 }, try Self.key(freeDisk: 1 << 31),
            try Self.key { $0.request.seed = 7 }, try Self.key { $0.request.loraR = 4 }, try Self.key { $0.datasetPaths = ["/e"] },
            try Self.key { $0.modelDigest = "sha256:2" }, try Self.key { $0.budgetBytes = 101 },
            try Self.key { $0.initialAdapterDirectory = "/a" }, try Self.key { $0.calibrationPath = calibration },
        ]
        #expect(Set(keys).count == keys.count)
    }

    @Test func theOneUsedLongestAgoGoes() throws {
        let plans = RecentPlans(limit: 2)
        for key in [[1], [2]] as [RecentPlans.Key] { plans.keep(Self.plan, for: key) }
        #expect(plans.plan([1]) == Self.plan)
        plans.keep(Self.plan, for: [3])
        #expect(plans.plan([2]) == nil && plans.plan([1]) != nil && plans.plan([3]) != nil)
    }
}
