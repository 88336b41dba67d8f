//! The list of tags: as they were last seen, found without reading all rows.

use super::*;

fn of_routes(routes: &[&str]) -> TagsQuery {
    TagsQuery {
        limit: 10,
        routes: routes.iter().map(ToString::to_string).collect(),
        ..TagsQuery::default()
    }
}

async fn listed(ledger: &Ledger, query: TagsQuery) -> Vec<u64> {
    let tags = ledger.tags(query).await.unwrap();
    tags.into_iter().map(|tag| tag.id).collect()
}

/// Rows 1 to 6: v1 waits and is promoted; v2 is in conflict; another route's v1; v1 of no route.
async fn filled() -> Ledger {
    let ledger = Ledger::in_memory();
    for (app, tag, result, n) in [
        ("app", "v1", Outcome::Waiting, 1),
        ("app", "v2", Outcome::Conflict, 2),
        ("app", "v1", Outcome::Promoted, 1),
        ("web", "v1", Outcome::Waiting, 3),
        ("gone", "v1", Outcome::Promoted, 4),
        ("app", "Latest", Outcome::UpToDate, 1),
    ] {
        let key = key(app, tag);
        let settled = Settled {
            route: app.into(),
            ..settled(result, n)
        };
        let written = (result == Outcome::Promoted).then(|| digest(n));
        let recorded = ledger.record(&key, &settled, facts(), written).await;
        assert!(recorded.unwrap());
    }
    ledger
}

#[tokio::test]
async fn tags_are_listed_as_they_were_last_seen_the_newest_first() {
    let ledger = filled().await;
    let both = of_routes(&["app", "web"]);
    assert_eq!(listed(&ledger, both.clone()).await, [6, 4, 3, 2]);
    assert_eq!(listed(&ledger, of_routes(&["web"])).await, [4]);
    assert_eq!(listed(&ledger, of_routes(&[])).await, [0; 0]);
    let waiting = TagsQuery {
        results: vec![Outcome::Waiting, Outcome::Conflict],
        ..both.clone()
    };
    assert_eq!(listed(&ledger, waiting).await, [4, 2], "v1 waits no more");
    let page = TagsQuery {
        limit: 2,
        after: 6,
        ..both.clone()
    };
    assert_eq!(listed(&ledger, page).await, [4, 3]);
    for (text, expected) in [
        ("APP:LAT", vec![6]),
        ("staging-web", vec![4]),
        (":v2", vec![2]),
        ("%", vec![]),
        ("'", vec![]),
    ] {
        let searched = TagsQuery {
            text: Some(text.into()),
            ..both.clone()
        };
        assert_eq!(listed(&ledger, searched).await, expected, "{text}");
    }
    let promoted = ledger.tags(both).await.unwrap().remove(2);
    assert_eq!(promoted.written, Some(digest(1)));
    assert!(promoted.written_at.is_some());
    assert_eq!(ledger.rows_added(), 6);
}

/// With 100,000 tags and millions of rows the list is still read by an index.
#[tokio::test]
async fn the_list_reads_an_index_in_its_order_and_no_row_that_it_does_not_show() {
    let ledger = filled().await;
    let plan = |query: TagsQuery| async {
        let read = move |db: &Connection| super::super::current::plan(db, &query);
        ledger.store.read(read).await.unwrap()
    };
    let all = plan(of_routes(&["app"])).await;
    assert!(
        all.contains("SEARCH jobs USING INDEX jobs_by_newest"),
        "{all}"
    );
    assert!(
        all.contains("SEARCH rows USING INTEGER PRIMARY KEY"),
        "{all}"
    );
    let rare = plan(TagsQuery {
        results: vec![Outcome::Conflict],
        ..of_routes(&["app"])
    });
    let rare = rare.await;
    assert!(
        rare.contains("SEARCH jobs USING INDEX jobs_by_result"),
        "{rare}"
    );
}
