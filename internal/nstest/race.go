// SPDX-License-Identifier: Apache-2.0

//go:build race

package nstest

// Race says whether this test binary has the race detector in it.
const Race = true
