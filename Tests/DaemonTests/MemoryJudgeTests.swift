// What a worker decides about memory, sample by sample, without a clock.
import Testing

import edgetuned

private let mebibyte: UInt64 = 1 << 20

/// On a machine of 1000 MiB, for a plan of 100 MiB.
private func sample(
    _ milliseconds: Int, some: Double = 0, full: Double = 0, stalledMilliseconds: Int = 0, available: UInt64 = 500,
    resident: UInt64 = 90, swapKiB: UInt64 = 0, groupSome: Double? = nil, groupOOMs: UInt64 = 0
) -> MemorySample {
    func pressure(_ some: Double, _ full: Double) -> MemoryPressure {
        MemoryPressure(
            some: .init(avg10: some, total: .seconds(1000) + .milliseconds(stalledMilliseconds)),
            full: .init(avg10: full, total: .zero))
    }
    return MemorySample(
        at: .milliseconds(milliseconds), residentBytes: resident * mebibyte, swapBytes: swapKiB << 10,
        totalBytes: 1000 * mebibyte, availableBytes: available * mebibyte, pressure: pressure(some, full),
        groupPressure: groupSome.map { pressure($0, 0) }, groupOOMs: groupOOMs)
}

private func levels(_ samples: [MemorySample]) -> [MemoryLevel] {
    var judge = MemoryJudge(plannedPeakBytes: 100 * mebibyte)
    return samples.map { judge.take($0) }
}

@Suite struct MemoryJudgeTests {
    @Test func belowEveryThresholdIsCalm() {
        #expect(levels([sample(0), sample(250, some: 9.99, full: 9.99, available: 50)]) == [.calm, .calm])
    }

    @Test(arguments: [
        (sample(0, some: 10), "pressure, some avg10 10.0 %"),
        (sample(0, groupSome: 12.5), "pressure, some avg10 12.5 %"),
        (sample(0, available: 49), "MemAvailable is 49 MiB of 1000 MiB"),
        (sample(0, swapKiB: 4), "4 KiB of the worker are in swap"),
    ])
    func aShortageGivesBackAtOnce(_ sample: MemorySample, _ reason: String) {
        #expect(levels([sample]) == [.giveBack(reason)])
    }

    @Test func aShortageThatLastsFiveSecondsPauses() {
        let low = levels([sample(0, available: 40), sample(4999, available: 40), sample(5000, available: 40)])
        #expect(low[1] == .giveBack("MemAvailable is 40 MiB of 1000 MiB"))
        #expect(low[2] == .pause("MemAvailable is 40 MiB of 1000 MiB, 5 s after weights were given back"))
        let stalls = levels([
            sample(0, some: 20), sample(2500, some: 20, stalledMilliseconds: 300), sample(5000, some: 20, stalledMilliseconds: 500),
        ])
        #expect(stalls[2] == .pause("pressure, some task stood still 10 % of the time, 5 s after weights were given back"))
    }

    @Test func anAverageThatOnlyLagsDoesNotPause() {
        // Nothing was lost since weights were given back: avg10 falls slowly, and the run goes on.
        let found = levels([
            sample(0, some: 30), sample(5000, some: 18), sample(10000, some: 11), sample(15000, some: 6), sample(15250),
        ])
        #expect(found[1] == .giveBack("pressure, some avg10 18.0 %"))
        #expect(found[2] == .giveBack("pressure, some avg10 11.0 %"))
        #expect(found[3...] == [.calm, .calm])
    }

    @Test func aSecondShortageGivesBackAgain() {
        let found = levels([sample(0, available: 40), sample(5000), sample(9000, available: 40), sample(13000, available: 40)])
        #expect(found[1] == .calm)
        #expect(found[3] == .giveBack("MemAvailable is 40 MiB of 1000 MiB"))
    }

    @Test func pagesThatStayInSwapAreOneEpisodeAndMoreOfThemPause() {
        let stays = levels([sample(0, swapKiB: 8), sample(5000, swapKiB: 8), sample(9000, swapKiB: 8), sample(9250, swapKiB: 12)])
        #expect(stays[1...2] == [.calm, .calm])
        #expect(stays[3] == .giveBack("12 KiB of the worker are in swap"))
        #expect(
            levels([sample(0, swapKiB: 8), sample(5000, swapKiB: 9)])[1]
                == .pause("9 KiB of the worker are in swap, 5 s after weights were given back"))
    }

    @Test func whenNothingGetsOnItLeavesAtOnce() {
        #expect(levels([sample(0, full: 10)]) == [.pause("pressure, full avg10 10.0 %")])
        #expect(levels([sample(0, groupOOMs: 3), sample(250, groupOOMs: 4)]) == [.calm, .pause("the cgroup refused memory at its limit")])
    }

    @Test func moreThanThePlanAndItsHeadroomIsABrokenPlan() {
        let found = levels([sample(0, resident: 110), sample(250, resident: 111), sample(500)])
        #expect(found[0] == .calm)
        #expect(found[1] == .planBroken("111 MiB are resident, 100 MiB were planned"))
        #expect(found[2] == found[1], "final")
    }

    @Test func aPauseIsFinal() {
        #expect(levels([sample(0, full: 50), sample(250)])[1] == .pause("pressure, full avg10 50.0 %"))
    }

    @Test func aKernelWithoutPressureFilesHasTheRest() {
        var bare = sample(0, available: 10)
        bare.pressure = nil
        #expect(levels([bare]) == [.giveBack("MemAvailable is 10 MiB of 1000 MiB")])
    }

    @Test func aJobStartsWhenItsPeakIsThereAndNothingStalls() {
        func memory(_ mebibytes: UInt64) -> HostMemory {
            HostMemory(
                total: MemoryBound(bytes: 1000 * mebibyte, name: "MemTotal"),
                available: MemoryBound(bytes: mebibytes * mebibyte, name: "MemAvailable"))
        }
        func pressure(_ some: Double) -> MemoryPressure {
            MemoryPressure(some: .init(avg10: some, total: .zero), full: .init(avg10: 0, total: .zero))
        }
        #expect(startObstacle(planned: 100 * mebibyte, memory: memory(100), pressure: pressure(4.9)) == nil)
        #expect(startObstacle(planned: 100 * mebibyte, memory: memory(100), pressure: nil) == nil)
        #expect(
            startObstacle(planned: 100 * mebibyte, memory: memory(99), pressure: nil)
                == "needs 100 MiB, MemAvailable is 99 MiB")
        #expect(
            startObstacle(planned: 1, memory: memory(99), pressure: pressure(5))
                == "pressure, some avg10 5.0 %, starts below 5.0 %")
    }
}
