// SPDX-License-Identifier: Apache-2.0

package kernel

// Asked returns how many lists the kernel was asked for.
func (k *Kernel) Asked() int64 { return k.lists.asked.Load() }
