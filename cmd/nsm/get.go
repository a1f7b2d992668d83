// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
)

// listConfig are the settings of every 'nsm get'.
type listConfig struct {
	managerConfig
	Output string   `flag:"output" short:"o" choices:"wide,json,yaml" help:"form of the output instead of a plain table"`
	Labels selector `flag:"selector" short:"l" help:"only what has these labels, key=value[,key=value...]"`
	Watch  bool     `flag:"watch" short:"w" help:"go on with changes until interrupted; json prints one event per line"`
}

// selector is labels that something must have.
type selector map[string]string

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *selector) UnmarshalText(text []byte) error {
	*s = selector{}
	for item := range strings.SplitSeq(string(text), ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(item), "=")
		if !ok || key == "" {
			return nserr.BadSelector.Errorf("want key=value[,key=value...]")
		}
		(*s)[key] = value
	}
	return nil
}

// kind is one kind of thing that can be listed: T, which comes in events E.
type kind[E, T any] struct {
	name    string // as in 'nsm get NAME'
	aliases []string
	arg     string // what one is called by; default NAME
	short   string
	long    string
	example string
	list    func(ctx context.Context, c adminv1.AdminClient, f *adminv1.Filter) (grpc.ServerStreamingClient[E], error)
	item    func(*E) (adminv1.EventType, *T)
	key     func(*T) string // by which it is found and sorted
	missing *nserr.Reason   // when NAME is given and there is none
	columns []column[T]
	yaml    func(*T) ([]byte, error) // nil: as the message
}

// column is one column of a table.
type column[T any] struct {
	title string
	wide  bool // only with -o wide
	cell  func(x *T, now time.Time) string
}

func newGet(a *app) *cobra.Command {
	get := &cobra.Command{
		Use:     "get",
		Short:   "List services, endpoints, wires or nodes",
		Example: "  nsm get wires\n  nsm get services -o yaml\n  nsm get endpoints -l app=db -w",
		GroupID: groupOperate,
		RunE:    group,
	}
	get.AddCommand(
		newGetKind(a, serviceKind()),
		newGetKind(a, endpointKind()),
		newGetKind(a, wireKind()),
		newGetKind(a, nodeKind()),
	)
	return get
}

func newGetKind[E, T any](a *app, k kind[E, T]) *cobra.Command {
	var cfg listConfig
	c := a.command(&cobra.Command{
		Use:               k.name + " [" + cmp.Or(k.arg, "NAME") + "]",
		Aliases:           k.aliases,
		Short:             k.short,
		Long:              k.long,
		Example:           k.example,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeNames(a, &cfg.managerConfig, k),
	}, &cfg, func(ctx context.Context, args []string) error {
		filter := &adminv1.Filter{Labels: cfg.Labels, Watch: cfg.Watch}
		if len(args) > 0 {
			filter.Name = args[0]
		}
		if cfg.Watch {
			err := a.watch(ctx, cfg, func(c adminv1.AdminClient) error { return watchKind(ctx, a, k, c, filter, cfg.Output) })
			if ctx.Err() != nil {
				return nil // interrupted, as it should be
			}
			return err
		}
		return a.call(ctx, cfg.managerConfig, func(ctx context.Context, c adminv1.AdminClient) error {
			found, err := collect(ctx, k, c, filter)
			if err != nil {
				return err
			}
			if len(found) == 0 && filter.GetName() != "" {
				return k.missing.Errorf("%s %q is not found", strings.TrimSuffix(k.name, "s"), filter.GetName()).WithFix("list %s with 'nsm get %s'", k.name, k.name)
			}
			return printKind(a, k, found, cfg.Output, filter.GetName() != "")
		})
	})
	complete(c, "output", "wide", "json", "yaml")
	return c
}

// call runs f with the admin API and the time limit of one call.
func (a *app) call(ctx context.Context, to managerConfig, f func(context.Context, adminv1.AdminClient) error) error {
	conn, err := a.connect(ctx, to)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, to.RequestTimeout)
	defer cancel()
	return errors.Join(noManager(f(ctx, conn), to), conn.close())
}

// noManager says so if whoever answers does not serve the admin API.
func noManager(err error, to managerConfig) error {
	if status.Code(err) != codes.Unimplemented {
		return err
	}
	return nserr.PeerDown.Errorf("what answers at %s is not a manager: %w", to.ConnectTo, err).
		WithFix("name the manager's socket with --connect-to: nsm.io.sock, beside those of others")
}

// watch runs f with the admin API and no limit.
func (a *app) watch(ctx context.Context, cfg listConfig, f func(adminv1.AdminClient) error) error {
	conn, err := a.connect(ctx, cfg.managerConfig)
	if err != nil {
		return err
	}
	return errors.Join(noManager(f(conn), cfg.managerConfig), conn.close())
}

// collect returns all items that pass the filter, sorted.
func collect[E, T any](ctx context.Context, k kind[E, T], c adminv1.AdminClient, f *adminv1.Filter) ([]*T, error) {
	stream, err := k.list(ctx, c, f)
	if err != nil {
		return nil, err
	}
	var found []*T
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			slices.SortFunc(found, func(x, y *T) int { return cmp.Compare(k.key(x), k.key(y)) })
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		if _, x := k.item(event); x != nil {
			found = append(found, x)
		}
	}
}

// printKind prints a list, or the single thing that was asked for by name.
func printKind[E, T any](a *app, k kind[E, T], found []*T, form string, single bool) error {
	switch {
	case form == "yaml" && k.yaml != nil:
		for i, x := range found {
			data, err := k.yaml(x)
			if err != nil {
				return err
			}
			if i > 0 {
				data = append([]byte("---\n"), data...)
			}
			if _, err := a.out.Write(data); err != nil {
				return err
			}
		}
		return nil
	case form == "json" || form == "yaml":
		items := []json.RawMessage{} // not null
		for _, x := range found {
			data, err := compactJSON(any(x).(proto.Message))
			if err != nil {
				return err
			}
			items = append(items, data)
		}
		if single && len(items) == 1 {
			return printJSON(a.out, form, items[0])
		}
		data, err := json.Marshal(map[string]any{"items": items})
		if err != nil {
			return err
		}
		return printJSON(a.out, form, data)
	case len(found) == 0:
		_, err := fmt.Fprintf(a.err, "no %s\n", k.name)
		return err
	}
	now := time.Now()
	rows := [][]string{k.titles(form)}
	for _, x := range found {
		rows = append(rows, k.row(x, form, now))
	}
	return (&table{out: a.out}).print(rows...)
}

// watchKind prints what is there and then each change, until the stream ends.
func watchKind[E, T any](ctx context.Context, a *app, k kind[E, T], c adminv1.AdminClient, f *adminv1.Filter, form string) error {
	stream, err := k.list(ctx, c, f)
	if err != nil {
		return err
	}
	t := &table{out: a.out, widths: []int{len("MODIFIED")}}
	synced := false
	rows := [][]string{append([]string{"EVENT"}, k.titles(form)...)}
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nserr.WatchLost.Errorf("the manager has ended the watch")
		}
		if err != nil {
			return err
		}
		if form == "json" || form == "yaml" {
			if err := printEvent(a.out, form, any(event).(proto.Message)); err != nil {
				return err
			}
			continue
		}
		if typ, x := k.item(event); x != nil {
			name := strings.TrimPrefix(typ.String(), "EVENT_TYPE_")
			rows = append(rows, append([]string{name}, k.row(x, form, time.Now())...))
		} else if typ == adminv1.EventType_EVENT_TYPE_SYNCED {
			synced = true
		}
		if synced {
			if err := t.print(rows...); err != nil {
				return err
			}
			rows = rows[:0]
		}
	}
}

// printEvent prints one event of a watch: a line of json or a yaml document.
func printEvent(w io.Writer, form string, event proto.Message) error {
	data, err := compactJSON(event)
	if err != nil {
		return err
	}
	if form == "yaml" {
		if _, err := io.WriteString(w, "---\n"); err != nil {
			return err
		}
		return printJSON(w, form, data)
	}
	_, err = w.Write(append(data, '\n'))
	return err
}

func (k kind[E, T]) titles(form string) (row []string) {
	for _, c := range k.columns {
		if !c.wide || form == "wide" {
			row = append(row, c.title)
		}
	}
	return row
}

func (k kind[E, T]) row(x *T, form string, now time.Time) (row []string) {
	for _, c := range k.columns {
		if !c.wide || form == "wide" {
			row = append(row, orNone(c.cell(x, now)))
		}
	}
	return row
}

// completeNames offers the names of what exists, to the shell: quickly or not
// at all.
func completeNames[E, T any](a *app, to *managerConfig, k kind[E, T]) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		limited := *to
		limited.DialTimeout, limited.RequestTimeout = time.Second, time.Second
		var names []string
		err := a.call(c.Context(), limited, func(ctx context.Context, client adminv1.AdminClient) error {
			found, err := collect(ctx, k, client, &adminv1.Filter{})
			for _, x := range found {
				names = append(names, k.key(x))
			}
			return err
		})
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
